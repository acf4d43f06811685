package bucket

import (
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"
)

func TestNameSaysTheWindow(t *testing.T) {
	now := time.UnixMilli(1_790_000_000_123)
	for _, length := range []time.Duration{2 * time.Hour, time.Second, 1500 * time.Millisecond} {
		for _, n := range []int64{0, 1, 2, 248_611, 1 << 24} {
			for _, whole := range []bool{false, true} {
				begin := n * length.Milliseconds()
				id, err := windowName(now, begin, whole)
				require.NoError(t, err)
				require.Equal(t, now.UnixMilli(), int64(id.Time()))
				got, gotWhole, ok := nameWindow(id, length)
				require.True(t, ok)
				require.Equal(t, begin, got)
				require.Equal(t, whole, gotWhole)
			}
		}
	}
	_, _, ok := nameWindow(ulid.Make(), 2*time.Hour)
	require.False(t, ok)
}

// A name that is ours stays ours when it is written anew; any other is refused, and none panics.
func FuzzNameWindow(f *testing.F) {
	id, err := windowName(time.UnixMilli(1_790_000_000_123), 7_200_000, true)
	require.NoError(f, err)
	f.Add(id[:], int64(7_200_000))
	f.Add(make([]byte, 16), int64(1))
	f.Fuzz(func(t *testing.T, b []byte, ms int64) {
		var id ulid.ULID
		copy(id[:], b)
		length := time.Duration(max(1, ms%(1<<40))) * time.Millisecond
		begin, whole, ok := nameWindow(id, length)
		if !ok {
			return
		}
		require.Zero(t, begin%length.Milliseconds())
		require.GreaterOrEqual(t, begin, int64(0))
		again, err := windowName(ulid.Time(id.Time()), begin, whole)
		require.NoError(t, err)
		require.Equal(t, id[:14], again[:14])
	})
}
