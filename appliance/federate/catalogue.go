package federate

import (
	"hash/maphash"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
)

// series is one series as it is stored.
type series struct {
	lset  labels.Labels
	hash  uint64
	ref   storage.SeriesRef
	begun bool  // at least one sample was committed
	lastT int64 // time of the newest of them, ms
	ours  bool  // a health series of the upstream: nothing pulled may write to it
	next  *series

	pull uint64 // the pull that it was last met in
	at   int    // its index among that pull's samples
}

// catalogue finds series by their labels. The hash is seeded per catalogue: the
// labels come from the other side, which must not be able to choose collisions.
type catalogue struct {
	seed maphash.Seed
	m    map[uint64]*series
	buf  []byte
}

func newCatalogue() *catalogue {
	return &catalogue{seed: maphash.MakeSeed(), m: map[uint64]*series{}}
}

// sibling is an empty catalogue in which hashes mean the same.
func (c *catalogue) sibling() *catalogue {
	return &catalogue{seed: c.seed, m: map[uint64]*series{}}
}

func (c *catalogue) hash(ls labels.Labels) uint64 {
	c.buf = ls.Bytes(c.buf)
	return c.hashBytes(c.buf)
}

func (c *catalogue) hashBytes(b []byte) uint64 { return maphash.Bytes(c.seed, b) }

func (c *catalogue) find(hash uint64, ls labels.Labels) *series {
	for s := c.m[hash]; s != nil; s = s.next {
		if labels.Equal(s.lset, ls) {
			return s
		}
	}
	return nil
}

func (c *catalogue) add(s *series) {
	s.next = c.m[s.hash]
	c.m[s.hash] = s
}

func (c *catalogue) remove(s *series) {
	p := c.m[s.hash]
	if p == s {
		if s.next == nil {
			delete(c.m, s.hash)
		} else {
			c.m[s.hash] = s.next
		}
		s.next = nil
		return
	}
	for ; p != nil; p = p.next {
		if p.next == s {
			p.next, s.next = s.next, nil
			return
		}
	}
}

// each calls fn for all series; fn may remove the one that it is given.
func (c *catalogue) each(fn func(*series)) {
	for _, s := range c.m {
		for s != nil {
			next := s.next
			fn(s)
			s = next
		}
	}
}

// cloneLabels copies ls down to the strings, so that nothing keeps the buffer
// of an answer alive.
func cloneLabels(ls labels.Labels) labels.Labels {
	b := labels.NewScratchBuilder(ls.Len())
	ls.Range(func(l labels.Label) { b.Add(strings.Clone(l.Name), strings.Clone(l.Value)) })
	return b.Labels()
}
