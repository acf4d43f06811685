package alert

import (
	"errors"
	"fmt"
	"os"

	"github.com/prometheus/alertmanager/nflog"
	"github.com/prometheus/alertmanager/silence"
)

// openState reads the notification log and the silences of an earlier run: each its snapshot, then its journal.
func (a *Alert) openState() error {
	log, err := nflog.New(nflog.Options{
		SnapshotFile: a.logFile(),
		Retention:    a.opts.Retention,
		Logger:       a.logger,
		Metrics:      a.opts.Registerer,
	})
	if err := a.setAside(a.logFile(), log != nil, err); err != nil {
		return err
	}
	a.log = &notificationLog{
		upstreamLog: log, self: a.opts.Replica, retention: a.opts.Retention, duplicates: a.metrics.duplicates, sent: map[turnKey]sent{},
	}
	a.silences, err = silence.New(silence.Options{
		SnapshotFile: a.silenceFile(),
		Retention:    a.opts.Retention,
		// No limit, as in a stock Alertmanager.
		Limits:        silence.Limits{MaxSilences: func() int { return 0 }, MaxSilenceSizeBytes: func() int { return 0 }},
		Logger:        a.logger,
		Metrics:       a.opts.Registerer,
		EventRecorder: a.recorder,
	})
	if err := a.setAside(a.silenceFile(), a.silences != nil, err); err != nil {
		return err
	}
	// A silence is rare and somebody relies on it; thousands of notifications may be logged in a second, and losing
	// one to a loss of power repeats a page at worst.
	if a.silenceJournal, err = openJournal(a.silenceFile()+".journal", true, a.logger, a.metrics.journalFailures, a.silences.Merge); err != nil {
		return err
	}
	if a.logJournal, err = openJournal(a.logFile()+".journal", false, a.logger, a.metrics.journalFailures, a.log.Merge); err != nil {
		return errors.Join(err, a.silenceJournal.close())
	}
	return nil
}

// setAside renames a snapshot that upstream could not decode, and goes on with the empty state that upstream then
// leaves: a replica that does not page is worse than one that forgot a silence.
func (a *Alert) setAside(file string, usable bool, err error) error {
	if err == nil {
		return nil
	}
	if !usable {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if renameErr := os.Rename(file, file+".damaged"); renameErr != nil {
		return fmt.Errorf("set the damaged snapshot %s aside: %w", file, errors.Join(err, renameErr))
	}
	a.logger.Error("a snapshot is damaged; it is set aside, and what it held is forgotten unless a peer still has it",
		"file", file, "moved_to", file+".damaged", "err", err)
	return nil
}
