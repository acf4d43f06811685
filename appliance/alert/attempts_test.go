package alert

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestErrorsHaveNoAddresses holds that of the address of a receiver, which is often its password, nothing is shown but
// where it is.
func TestErrorsHaveNoAddresses(t *testing.T) {
	for text, want := range map[string]string{
		`Post "https://api.telegram.org/bot123:abc/sendMessage": dial tcp: i/o timeout`: `Post "https://api.telegram.org/<secret>": dial tcp: i/o timeout`,
		`see http://hook.example:8080/?token=x, or http://other.example.`:               `see http://hook.example:8080/<secret>, or http://other.example.`,
		`HTTPS://user:password@hook.example/x: refused`:                                 `https://hook.example/<secret>: refused`,
		`http://[::1: what`: `<address> what`,
		`unexpected status code 500: the backend is "down"`: `unexpected status code 500: the backend is "down"`,
	} {
		if got := withoutPaths(text); got != want {
			t.Errorf("%s\nbecame %s\nwant   %s", text, got, want)
		}
	}
}

// TestFailuresAreBounded holds that receivers that fail for ever take no memory for ever.
func TestFailuresAreBounded(t *testing.T) {
	a, now := newAttempts(), time.Unix(1_000_000, 0)
	for i := range maxFailing + 100 {
		a.failed(turnKey{group: fmt.Sprint(i)}, strings.Repeat("ü", 10_000)+"\n", now)
	}
	if n := len(a.failing); n > maxFailing {
		t.Errorf("%d failures are remembered", n)
	}
	last := turnKey{group: fmt.Sprint(maxFailing + 99)}
	f := a.of(last, now.Add(-time.Minute))
	if f == nil || len([]rune(f.Error)) > maxFailure {
		t.Fatalf("the last failure is %+v", f)
	}
	if f := a.of(last, now.Add(time.Minute)); f != nil {
		t.Errorf("it still fails although another replica has sent it since: %+v", f)
	}
}
