package federate

import (
	"errors"
	"fmt"
	"math"
	"sort"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// filter is the allow list of one upstream together with the labels that we set
// and the limits. It decides on one series at a time and keeps no state.
type filter struct {
	items   []item
	byName  map[string][]int // items that demand this metric name, in file order
	general []int            // items without such a demand, in file order

	origin labels.Label
	set    map[string]string // extra labels by name
	extra  []labels.Label    // the same, sorted

	bodyBytes       int64
	samples         int
	labels          int
	labelNameBytes  int
	labelValueBytes int
}

type item struct {
	matchers []*labels.Matcher
	keep     map[string]string // name to itself: the string to store
}

func newFilter(c *config.Upstream) (*filter, error) {
	f := &filter{
		byName:          map[string][]int{},
		origin:          labels.Label{Name: c.OriginLabel, Value: c.Name},
		set:             make(map[string]string, len(c.Labels)),
		bodyBytes:       orCeiling(int64(c.BodySizeLimit), config.CeilingBodyBytes),
		samples:         int(orCeiling(clamp(c.SampleLimit), config.CeilingSamples)),
		labels:          int(orCeiling(clamp(c.LabelLimit), config.CeilingLabels)),
		labelNameBytes:  int(orCeiling(clamp(c.LabelNameLengthLimit), config.CeilingLabelBytes)),
		labelValueBytes: int(orCeiling(clamp(c.LabelValueLengthLimit), config.CeilingLabelBytes)),
	}
	for name, value := range c.Labels {
		if name == c.OriginLabel || name == model.MetricNameLabel {
			return nil, fmt.Errorf("labels may not set %s", name)
		}
		f.set[name] = value
		f.extra = append(f.extra, labels.Label{Name: name, Value: value})
	}
	sort.Slice(f.extra, func(i, j int) bool { return f.extra[i].Name < f.extra[j].Name })
	for i, m := range c.Metrics {
		// Without matchers an item would match everything: the opposite of a
		// default deny.
		if len(m.Matchers) == 0 {
			return nil, errors.New("metrics contains an item without matchers: " + m.Match)
		}
		it := item{matchers: m.Matchers, keep: make(map[string]string, len(m.Labels))}
		for _, name := range m.Labels {
			it.keep[name] = name
		}
		f.items = append(f.items, it)
		if name, ok := demandedName(m.Matchers); ok {
			f.byName[name] = append(f.byName[name], i)
		} else {
			f.general = append(f.general, i)
		}
	}
	return f, nil
}

func demandedName(ms []*labels.Matcher) (string, bool) {
	for _, m := range ms {
		if m.Name == model.MetricNameLabel && m.Type == labels.MatchEqual {
			return m.Value, true
		}
	}
	return "", false
}

// match returns the first item of the list that the series matches as it came,
// or nil. The first one rules: its labels are kept, not the union of all.
func (f *filter) match(ls labels.Labels) *item {
	named, general := f.byName[ls.Get(model.MetricNameLabel)], f.general
	for len(named) > 0 || len(general) > 0 {
		var i int
		if len(general) == 0 || (len(named) > 0 && named[0] < general[0]) {
			i, named = named[0], named[1:]
		} else {
			i, general = general[0], general[1:]
		}
		if f.items[i].matches(ls) {
			return &f.items[i]
		}
	}
	return nil
}

func (it *item) matches(ls labels.Labels) bool {
	for _, m := range it.matchers {
		if !m.Matches(ls.Get(m.Name)) {
			return false
		}
	}
	return true
}

// mayName says whether a series of this name could be on the list at all.
func (f *filter) mayName(name string) bool {
	if len(f.byName[name]) > 0 {
		return true
	}
items:
	for _, i := range f.general {
		for _, m := range f.items[i].matchers {
			if m.Name == model.MetricNameLabel && !m.Matches(name) {
				continue items
			}
		}
		return true
	}
	return false
}

// relabel writes into b what is stored of a series that it matched, and returns
// how many labels were dropped because they are not listed and whether the
// series carried an origin label.
//
// The le label of a classic histogram and the quantile label of a summary are
// labels like any other: they must be listed to be kept. Without them the
// buckets collide, which is detected afterwards.
func (f *filter) relabel(it *item, ls labels.Labels, b *labels.ScratchBuilder) (dropped int, forged bool) {
	b.Reset()
	ls.Range(func(l labels.Label) {
		switch {
		case l.Value == "": // no label, as everywhere in Prometheus
		case l.Name == model.MetricNameLabel:
			b.Add(model.MetricNameLabel, l.Value)
		case l.Name == f.origin.Name:
			forged = true
		default:
			if _, ours := f.set[l.Name]; ours {
				return
			}
			name, listed := it.keep[l.Name]
			if !listed {
				dropped++
				return
			}
			b.Add(name, l.Value)
		}
	})
	for _, l := range f.extra {
		if l.Value != "" {
			b.Add(l.Name, l.Value)
		}
	}
	b.Add(f.origin.Name, f.origin.Value)
	b.Sort()
	return dropped, forged
}

// checkLimits holds the label limits against the labels as they would be stored.
func (f *filter) checkLimits(ls labels.Labels) error {
	metric := ls.Get(model.MetricNameLabel)
	if n := ls.Len(); n > f.labels {
		return faultf(resultLimit, "a series of %s has %d labels, more than label_limit %d", quoteName(metric), n, f.labels)
	}
	return ls.Validate(func(l labels.Label) error {
		if len(l.Name) > f.labelNameBytes {
			return faultf(resultLimit, "a series of %s has a label name of %d bytes, longer than label_name_length_limit %d", quoteName(metric), len(l.Name), f.labelNameBytes)
		}
		if len(l.Value) > f.labelValueBytes {
			return faultf(resultLimit, "label %s of %s has a value of %d bytes, longer than label_value_length_limit %d", quoteName(l.Name), quoteName(metric), len(l.Value), f.labelValueBytes)
		}
		return nil
	})
}

// orCeiling is the limit that holds: there is no input without a bound.
func orCeiling(limit, ceiling int64) int64 {
	if limit <= 0 {
		return ceiling
	}
	return min(limit, ceiling)
}

func clamp(n uint) int64 {
	return int64(min(n, math.MaxInt32))
}
