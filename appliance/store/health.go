package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
)

const (
	upName = "up"
	// suspectLookBack is how long before the time of interest the last success and the scrape interval are looked for.
	suspectLookBack = 10 * time.Minute
	// suspectNeighbours is how many distances on each side of a hole tell the scrape interval.
	suspectNeighbours = 4
)

// Suspect is a time in which a target was not scraped with success, though scraping went on before and, unless it
// lasts, after. Whether it is a gap depends on whether another replica reached the target meanwhile.
type Suspect struct {
	// Labels are those of the target's `up` series, without its name.
	Labels labels.Labels
	// Interval begins with the last success. It ends with the next one, or with the moment in which service discovery
	// took the target away, or it lasts.
	Interval
	// Every is the target's scrape interval, in milliseconds, as the samples around show it.
	Every int64
}

// Lasting tells whether the target is still not scraped.
func (s *Suspect) Lasting() bool { return s.To == Lasts }

// Suspects finds out from the `up` series of the queryable, which are to be this replica's own, what was not scraped
// between two times, in Unix milliseconds, of which the later one is about now. Suspects that began up to ten minutes
// earlier are found in whole. They come target by target, and of each in order.
//
// It errs on the side of one too many: a hole in which the whole process was away is one, and a target whose first
// scrapes in sight have failed is one from there on, if scraping went on before or may have. All `up` series count,
// also those that a federation brought and that are no target's.
func Suspects(ctx context.Context, q storage.Queryable, from, to int64) ([]Suspect, error) {
	mint := from - suspectLookBack.Milliseconds()
	querier, err := q.Querier(mint, to)
	if err != nil {
		return nil, fmt.Errorf("look for targets that were not scraped: %w", err)
	}
	defer func() { _ = querier.Close() }() // It was only read.
	var all []Suspect
	// unsure are suspects, by their index, that begin with a series: it may have begun long before. began is when.
	unsure := map[int]int64{}
	first := int64(Lasts)
	var samples []upSample
	var it chunkenc.Iterator
	set := querier.Select(ctx, true, &storage.SelectHints{Start: mint, End: to},
		labels.MustNewMatcher(labels.MatchEqual, model.MetricNameLabel, upName))
	for set.Next() {
		series := set.At()
		it = series.Iterator(it)
		if samples, err = upSamples(it, samples[:0], mint, to); err != nil {
			return nil, fmt.Errorf("read %s: %w", series.Labels(), err)
		}
		if len(samples) == 0 {
			continue
		}
		first = min(first, samples[0].t)
		found, open := suspectsOf(samples, to)
		for i, s := range found {
			if s.To <= from {
				continue
			}
			if i == 0 && open {
				unsure[len(all)] = samples[0].t
			}
			s.Labels = labels.NewBuilder(series.Labels()).Del(model.MetricNameLabel).Labels()
			all = append(all, s)
		}
	}
	if err := set.Err(); err != nil {
		return nil, fmt.Errorf("look for targets that were not scraped: %w", err)
	}
	kept := all[:0]
	for i, s := range all {
		// When others were scraped before it was, then it was not there yet, and has never been reached.
		if began, ok := unsure[i]; ok && began > first+s.Every+s.Every/2 {
			continue
		}
		kept = append(kept, s)
	}
	return kept, nil
}

type upSample struct {
	t     int64
	up    bool
	stale bool
}

func upSamples(it chunkenc.Iterator, samples []upSample, mint, maxt int64) ([]upSample, error) {
	for kind := it.Next(); kind != chunkenc.ValNone; kind = it.Next() {
		if kind != chunkenc.ValFloat {
			continue
		}
		if t, v := it.At(); t >= mint && t <= maxt {
			samples = append(samples, upSample{t, v == 1, value.IsStaleNaN(v)})
		}
	}
	if err := it.Err(); err != nil {
		return samples, fmt.Errorf("iterate: %w", err)
	}
	return samples, nil
}

// suspectsOf finds the suspects of one target. unsure tells that no success comes before the first of them.
func suspectsOf(samples []upSample, now int64) (found []Suspect, unsure bool) {
	spacing := spacings(samples)
	// since is the index of the last success; it is -1 at first, and none after a staleness marker.
	const none = -2
	since := -1
	// failures is the number of failed scrapes since then.
	failures := 0
	suspect := func(to int64, upto int) {
		s := Suspect{Interval: Interval{To: to}}
		begin := max(since, 0)
		s.Every = spacing.around(begin, upto)
		s.From = samples[begin].t
		if since == -1 {
			s.From--
			unsure = len(found) == 0
		}
		found = append(found, s)
	}
	// late tells whether the last success is too long ago at a time, of which upto is the index.
	late := func(t int64, upto int) bool {
		every := spacing.around(since, upto)
		return every > 0 && t-samples[since].t > every+every/2
	}
	for i, s := range samples {
		switch {
		case s.stale:
			if since == -1 && failures > 0 || since >= 0 && (failures > 0 || late(s.t, i)) {
				suspect(s.t, i)
			}
			since, failures = none, 0
		case s.up:
			if since == -1 && failures > 0 || since >= 0 && late(s.t, i) {
				suspect(s.t, i)
			}
			since, failures = i, 0
		default:
			failures++
		}
	}
	end := len(samples)
	switch {
	case since == -1 && failures > 0:
		suspect(Lasts, end)
	case since >= 0 && failures > 0 && late(now, end):
		suspect(Lasts, end)
	case since >= 0 && failures == 0:
		// A scrape may take as long as its interval and be right. Only what is not there after two was not scraped.
		if every := spacing.around(since, end); every > 0 && now-samples[since].t > 2*every+time.Second.Milliseconds() {
			suspect(Lasts, end)
		}
	}
	return found, unsure
}

// spacings are the distances of the samples that are no staleness markers to the one before, by the index of the
// later one; 0 if there is none.
type upSpacings []int64

func spacings(samples []upSample) upSpacings {
	d := make(upSpacings, len(samples))
	before := -1
	for i, s := range samples {
		if s.stale {
			continue
		}
		if before >= 0 {
			d[i] = s.t - samples[before].t
		}
		before = i
	}
	return d
}

// around is the usual distance in what lies between two samples and next to it, so that an interval that was configured
// anew makes few suspects of what came under the other one. It is the middle one of all that are there: where another
// replica's samples were filled in, one distance is shorter. When that is one hole and nothing else, the smallest of all
// samples has to do.
func (d upSpacings) around(i, j int) int64 {
	low, n := i+1, 0
	for k := i; k > 0 && n < suspectNeighbours; k-- {
		if d[k] > 0 {
			low, n = k, n+1
		}
	}
	high := j
	m := 0
	for k := j + 1; k < len(d) && m < suspectNeighbours; k++ {
		if d[k] > 0 {
			high, m = k, m+1
		}
	}
	if n+m == 0 {
		return smallest(d)
	}
	return middle(d[max(low, 0):min(high+1, len(d))])
}

// middle is the median of distances, the lower one of two; 0 is none.
func middle(of []int64) int64 {
	var some []int64
	for _, d := range of {
		if d > 0 {
			some = append(some, d)
		}
	}
	if len(some) == 0 {
		return 0
	}
	slices.Sort(some)
	return some[(len(some)-1)/2]
}

func smallest(of []int64) (least int64) {
	for _, d := range of {
		if d > 0 && (least == 0 || d < least) {
			least = d
		}
	}
	return least
}
