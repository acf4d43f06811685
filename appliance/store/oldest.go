package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

// oldestFor is how long what was found out about samples that came out of order is believed.
const oldestFor = time.Second

// oldestOOO remembers the oldest sample that came out of order and is older than everything else.
type oldestOOO struct {
	mtx   sync.Mutex
	at    time.Time
	base  int64
	found int64
}

// Oldest is the time of the oldest local sample, in Unix milliseconds; math.MaxInt64 when there is none. Unlike with TimeRange, there
// is one at that time, or in that moment's block: what is older can only be elsewhere.
func (s *Store) Oldest() (int64, error) {
	db := s.local.db.Load()
	if db == nil {
		return 0, tsdb.ErrNotReady
	}
	base := db.Head().MinTime()
	for _, b := range db.Blocks() {
		base = min(base, b.Meta().MinTime)
	}
	// The head only knows how old what came out of order may be: after each truncation that is its window.
	if from := db.Head().MinOOOTime(); from < base && from <= db.Head().MaxOOOTime() {
		return s.oldest.find(db, from, base)
	}
	return base, nil
}

func (o *oldestOOO) find(db *tsdb.DB, from, base int64) (oldest int64, err error) {
	o.mtx.Lock()
	defer o.mtx.Unlock()
	if o.base == base && time.Since(o.at) < oldestFor {
		return o.found, nil
	}
	q, err := db.Querier(from, base-1)
	if err != nil {
		return 0, fmt.Errorf("look for what came out of order: %w", err)
	}
	defer func() { err = errors.Join(err, q.Close()) }()
	oldest = base
	set := q.Select(context.Background(), false, nil, labels.MustNewMatcher(labels.MatchRegexp, model.MetricNameLabel, ".+"))
	var it chunkenc.Iterator
	for set.Next() {
		it = set.At().Iterator(it)
		if it.Next() != chunkenc.ValNone {
			oldest = min(oldest, it.AtT())
		}
		if err := it.Err(); err != nil {
			return 0, fmt.Errorf("look for what came out of order: %w", err)
		}
	}
	if err := set.Err(); err != nil {
		return 0, fmt.Errorf("look for what came out of order: %w", err)
	}
	o.at, o.base, o.found = time.Now(), base, oldest
	return oldest, nil
}
