package bucket

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/thanos-io/objstore"
	"golang.org/x/sync/errgroup"
)

// sighting is what was seen of an object.
type sighting struct {
	sum [sha256.Size]byte
	// since is when it was first seen like this, by our clock; changed when it was written, by the bucket's, zero where
	// that is not listed.
	since, changed time.Time
	lease          *lease // nil if it is refused
	kept           time.Time
}

// look reads the leases and gives the addresses of the others.
func (r *Rendezvous) look(ctx context.Context) (found []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, rendezvousTimeout)
	defer cancel()
	defer func() {
		if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			r.lookFailed.Inc()
		}
	}()
	listed, whole, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	contents, errs, err := r.fetch(ctx, r.choose(listed))
	if err != nil {
		return nil, err
	}
	r.take(listed, whole, contents, errs)
	r.clean(ctx)
	r.lookedAt.SetToCurrentTime()
	return r.addresses(), nil
}

// list gives the objects in the place of leases, with the time that the bucket says they were written, and whether these are all.
func (r *Rendezvous) list(ctx context.Context) (listed map[string]time.Time, whole bool, err error) {
	var opts []objstore.IterOption
	if slices.Contains(r.o.Bucket.SupportedIterOptions(), objstore.UpdatedAt) {
		opts = append(opts, objstore.WithUpdatedAt())
	}
	enough := errors.New("enough")
	listed = map[string]time.Time{}
	folder := leaseFolder(r.cluster)
	err = r.o.Bucket.IterWithAttributes(ctx, folder, func(a objstore.IterObjectAttributes) error {
		if len(listed) == maxLeaseNames {
			return enough
		}
		if a.Name != folder+objstore.DirDelim { // Some tools make an object of a folder.
			listed[a.Name], _ = a.LastModified()
		}
		return nil
	}, opts...)
	switch {
	case len(listed) == maxLeaseNames:
		return listed, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("list the leases in %s of the bucket: %w", folder, err)
	}
	return listed, true, nil
}

// choose says what is read: all, or where there is too much our own lease, those that are known to be one, and some of the rest, others
// each time, so that garbage hides nothing for ever.
func (r *Rendezvous) choose(listed map[string]time.Time) []string {
	var names, rest []string
	for name := range listed {
		switch s := r.seen[name]; {
		case strings.HasSuffix(name, objstore.DirDelim):
		case name == r.object || s != nil && s.lease != nil:
			names = append(names, name)
		default:
			rest = append(rest, name)
		}
	}
	rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	// Half of it is for what is new, however many leases there are.
	rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	names = names[:min(len(names), max(maxLeasesRead/2, maxLeasesRead-len(rest)))]
	if _, ok := listed[r.object]; ok && !slices.Contains(names, r.object) {
		names[0] = r.object
	}
	return append(names, rest[:min(len(rest), maxLeasesRead-len(names))]...)
}

// fetch reads objects. It fails if none can be read.
func (r *Rendezvous) fetch(ctx context.Context, names []string) (contents map[string][]byte, errs map[string]error, err error) {
	contents, errs = map[string][]byte{}, map[string]error{}
	var mtx sync.Mutex
	var g errgroup.Group
	g.SetLimit(readConcurrency)
	for _, name := range names {
		g.Go(func() error {
			b, err := readLease(ctx, r.o.Bucket, name)
			mtx.Lock()
			defer mtx.Unlock()
			switch {
			case err == nil:
				contents[name] = b
			case !r.o.Bucket.IsObjNotFoundErr(err): // It may have been removed meanwhile.
				errs[name] = err
			}
			return nil
		})
	}
	_ = g.Wait() // None returns an error.
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("read the leases in the bucket: %w", err)
	}
	if len(contents) == 0 {
		for name, err := range errs {
			return nil, nil, fmt.Errorf("read the lease %s: %w", name, err)
		}
	}
	return contents, errs, nil
}

// take notes what was seen.
func (r *Rendezvous) take(listed map[string]time.Time, whole bool, contents map[string][]byte, errs map[string]error) {
	now := time.Now()
	r.mtx.Lock()
	keys := r.keys
	r.mtx.Unlock()
	notes := 0
	refuse := func(name, reason string, err error) {
		r.refused.WithLabelValues(reason).Inc()
		if notes++; notes <= maxLeaseNotes {
			r.o.Logger.Warn("an object in the place of leases is refused; if nobody needs it, remove it",
				"object", plain(name), "reason", reason, "err", err)
		}
	}
	for name := range r.seen {
		if _, ok := listed[name]; !ok && whole {
			delete(r.seen, name)
		}
	}
	_, there := listed[r.object]
	if whole && !there {
		r.next = min(r.next, goneAfter)
	}
	for name, changed := range listed {
		old := r.seen[name]
		b, read := contents[name]
		switch err := errs[name]; {
		case err != nil && old == nil:
			r.seen[name] = &sighting{since: now}
			refuse(name, leaseUnreadable, err)
			continue
		case strings.HasSuffix(name, objstore.DirDelim) && old == nil:
			r.seen[name] = &sighting{since: now}
			refuse(name, leaseMisplaced, errors.New("it is a folder"))
			continue
		case !read:
			continue
		}
		s := &sighting{sum: sha256.Sum256(b), since: now, changed: changed}
		same := old != nil && old.sum == s.sum
		if same {
			s.since, s.kept = old.since, old.kept
		}
		var err error
		if s.lease, err = keys.decode(r.cluster, name, b); err != nil && (!same || old.lease != nil) {
			var bad *leaseError
			if errors.As(err, &bad) {
				refuse(name, bad.reason, err)
			}
		}
		r.seen[name] = s
		if name == r.object && (s.lease == nil || s.lease.Instance != r.instance) {
			r.next = min(r.next, takenAfter)
			if s.lease != nil && s.lease.Address != r.o.Address {
				r.former, r.formerSeen = s.lease.Address, now
			}
		}
	}
	if notes > maxLeaseNotes {
		r.o.Logger.Warn("more objects in the place of leases are refused", "folder", leaseFolder(r.cluster), "more", notes-maxLeaseNotes)
	}
}

// clean removes leases that have expired. No clocks are compared for that: either we have seen for the whole time that it holds, and
// a margin, that nobody wrote it, or the bucket says that it was written long before our own was.
func (r *Rendezvous) clean(ctx context.Context) {
	others := r.o.Others()
	own := r.seen[r.object]
	gone := 0
	for name, s := range r.seen {
		if s.lease == nil || name == r.object || slices.Contains(others, s.lease.Replica) || gone == maxLeasesGone {
			continue
		}
		length := s.lease.length()
		watched := time.Since(s.since) > length+length/4
		outdated := own != nil && own.sum == r.sum && !s.changed.IsZero() && own.changed.Sub(s.changed) > 4*length
		if !watched && !outdated || !s.kept.IsZero() && time.Since(s.kept) < time.Hour {
			continue
		}
		gone++
		removed, err := r.remove(ctx, name, func(b []byte) bool { return sha256.Sum256(b) == s.sum })
		if err != nil {
			s.kept = time.Now()
			r.o.Logger.Warn("an expired lease cannot be removed", "replica", s.lease.Replica, "address", s.lease.Address, "err", err)
			continue
		}
		delete(r.seen, name)
		if !removed {
			continue // Another did it, or it was renewed.
		}
		r.removed.Inc()
		r.o.Logger.Info("removed the lease of a replica that was not renewed", "replica", s.lease.Replica, "address", s.lease.Address, "object", name)
	}
}

// addresses are where the others were, however old their leases are: to try an address costs nothing.
func (r *Rendezvous) addresses() []string {
	var others []*sighting
	known := 0
	for name, s := range r.seen {
		if s.lease == nil {
			continue
		}
		known++
		if name != r.object {
			others = append(others, s)
		}
	}
	r.leases.Set(float64(known))
	r.mtx.Lock()
	r.status.Others = len(others)
	r.mtx.Unlock()
	slices.SortFunc(others, func(a, b *sighting) int {
		if c := b.changed.Compare(a.changed); c != 0 {
			return c
		}
		return strings.Compare(a.lease.Replica, b.lease.Replica)
	})
	var found []string
	add := func(address string) {
		if address != r.o.Address && !slices.Contains(found, address) && len(found) < maxLeasesFound {
			found = append(found, address)
		}
	}
	if r.former != "" && time.Since(r.formerSeen) < 2*rendezvousEvery {
		add(r.former)
	}
	for _, s := range others {
		add(s.lease.Address)
	}
	return found
}
