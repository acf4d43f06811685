package bucket

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// order is the rendezvous order of the replicas for a piece of work: everybody who knows the same replicas computes the same
// one, and a replica that goes or comes moves only the work that it had or gets.
func order(work string, replicas []string) []string {
	type ranked struct {
		name  string
		score uint64
	}
	all := make([]ranked, 0, len(replicas))
	for _, name := range replicas {
		h := fnv.New64a()
		_, _ = h.Write([]byte(work + "\x00" + name)) // It never fails.
		all = append(all, ranked{name, mix(h.Sum64())})
	}
	slices.SortFunc(all, func(a, b ranked) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(a.name, b.name))
	})
	names := make([]string, len(all))
	for i, r := range all {
		names[i] = r.name
	}
	return names
}

// mix spreads the bits: FNV's high bits hardly depend on the last bytes. It is the finalizer of MurmurHash3.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// rank is the place of a replica in the order for a piece of work, 0 for the first. Who is not among them comes last.
func rank(work, name string, replicas []string) int {
	o := order(work, replicas)
	if i := slices.Index(o, name); i >= 0 {
		return i
	}
	return len(o)
}
