package appliance

import (
	"testing"
	"time"

	"github.com/prometheus/prometheus/rules"
	"github.com/stretchr/testify/require"

	"github.com/tocsin-io/tocsin/appliance/bucket"
)

func TestAlertsOfTheConfigurationHavePatience(t *testing.T) {
	every := 15 * time.Second
	alerts := configAlerts{every: every, lags: map[string]*configLag{}}
	now := time.Now()
	at := func(after time.Duration, behind map[string]bucket.Lag) map[string]*rules.Alert {
		now = now.Add(after)
		return alerts.at(now, behind)
	}
	lags, is := bucket.Lag{Why: "it runs on x"}, bucket.Lag{}
	waits := bucket.Lag{Why: "it sees no whole configuration in the bucket", Waits: true}

	require.Empty(t, at(0, map[string]bucket.Lag{"a": is, "b": lags}))
	require.Empty(t, at(every, map[string]bucket.Lag{"a": is, "b": lags}))
	// That this one does not see the bucket for a moment neither ends what it knew of others nor is an alert.
	require.Empty(t, at(every, map[string]bucket.Lag{"a": waits}))
	sent := at(configPatience*every, map[string]bucket.Lag{"a": is, "b": lags})
	require.Len(t, sent, 1)
	require.Equal(t, rules.StateFiring, sent["b"].State)
	require.Len(t, at(every, map[string]bucket.Lag{"a": waits}), 1)

	// Later it does not speak for the other one any more, and of itself it says what it is.
	sent = at(configPatience*every, map[string]bucket.Lag{"a": waits})
	require.Equal(t, rules.StateInactive, sent["b"].State)
	require.NotContains(t, sent, "a")
	sent = at(bucketPatience, map[string]bucket.Lag{"a": waits})
	require.Equal(t, rules.StateFiring, sent["a"].State)
	require.Contains(t, sent["a"].Annotations.Get("summary"), "does not see")
	sent = at(every, map[string]bucket.Lag{"a": is})
	require.Equal(t, rules.StateInactive, sent["a"].State)
	require.Empty(t, at(every, map[string]bucket.Lag{"a": is}))
}
