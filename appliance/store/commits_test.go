package store

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/prometheus/storage"
)

// hanging is an appender of a head that does not get its lock.
type hanging struct {
	storage.Appender
	free chan struct{}
}

func (h hanging) Commit() error {
	<-h.free
	return nil
}

func TestOldestCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{}
		h := hanging{free: make(chan struct{})}
		go func() {
			for range 3 {
				a := &appender{head: h, commits: &s.commits}
				if err := a.Commit(); err != nil {
					t.Error(err)
				}
			}
		}()
		<-time.After(time.Minute)
		if got := s.OldestCommit(); got != time.Minute {
			t.Errorf("a commit that has hung for a minute counts as %s old", got)
		}
		h.free <- struct{}{}
		<-time.After(time.Second)
		if got := s.OldestCommit(); got != time.Second {
			t.Errorf("the commit after it, of a second ago, counts as %s old", got)
		}
		close(h.free)
		synctest.Wait()
		if got := s.OldestCommit(); got != 0 {
			t.Errorf("no commit is under way, and the oldest is %s old", got)
		}
	})
}
