package bucket

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gogo/protobuf/proto"
	"github.com/gogo/protobuf/types"
	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/thanos-io/thanos/pkg/block"
	thanosstore "github.com/thanos-io/thanos/pkg/store"
	"github.com/thanos-io/thanos/pkg/store/hintspb"
	"github.com/thanos-io/thanos/pkg/store/storepb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	// skipFirst is how long a block that could not be read is left out, doubled each time that it cannot be read again, up to skipMost.
	skipFirst, skipMost = 10 * time.Second, 10 * time.Minute
	// probeFor is how long the bucket may take to answer a small question, before it counts as away; awayFor is how long no query asks it then.
	probeFor, awayFor = 2 * time.Second, 10 * time.Second
	// maxSkips bounds how many blocks are found unreadable by one select.
	maxSkips = 8
)

// probeName is an object that need not be there.
const probeName = "tocsin-probe"

var blockName = regexp.MustCompile(`\b[0-7][0-9A-HJKMNP-TV-Z]{25}\b`)

// skipping leaves out blocks that cannot be read: Thanos's store fails a whole select because of one of them. What it would have had
// is a warning.
type skipping struct {
	*thanosstore.BucketStore
	b *Bucket

	// again tells that there are blocks to load anew.
	again chan struct{}
	// places bounds the selects that run at once; open ends when nobody may read any more.
	places chan struct{}
	open   context.Context

	mtx  sync.Mutex
	bad  map[ulid.ULID]unreadable
	away time.Time // until when nobody is made to wait for the bucket
	why  error
}

type unreadable struct {
	at   time.Time
	wait time.Duration
	why  string
	// anew says that the store has to load the block anew: once an index header could not be had, upstream's reader gives that error for ever.
	anew bool
}

func newSkipping(open context.Context, b *Bucket, s *thanosstore.BucketStore) *skipping {
	k := &skipping{BucketStore: s, b: b, open: open, again: make(chan struct{}, 1), places: make(chan struct{}, readersAtOnce), bad: map[ulid.ULID]unreadable{}}
	promauto.With(b.o.Registerer).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_bucket_unreadable_blocks",
		Help: "Blocks of the bucket that queries leave out for a while, because they could not be read.",
	}, func() float64 { return float64(len(k.skipped())) })
	return k
}

// skipped are the blocks that are left out now, and why.
func (k *skipping) skipped() map[ulid.ULID]unreadable {
	k.mtx.Lock()
	defer k.mtx.Unlock()
	now := time.Now()
	back := time.Time{}
	if v, err := k.b.catalogue.last(); err == nil {
		back = v.since
	}
	out := map[ulid.ULID]unreadable{}
	for id, u := range k.bad {
		switch {
		case u.anew:
			out[id] = u
		case u.at.Before(back): // The bucket was away then: that says nothing about a block.
			delete(k.bad, id)
		case now.Sub(u.at) < u.wait:
			out[id] = u
		case now.Sub(u.at) > u.wait+skipMost:
			delete(k.bad, id)
		}
	}
	return out
}

// skip leaves a block out from now on, and tells for how long.
func (k *skipping) skip(id ulid.ULID, why error) time.Duration {
	k.mtx.Lock()
	defer k.mtx.Unlock()
	u := unreadable{at: time.Now(), wait: skipFirst, why: why.Error(), anew: true}
	if before, ok := k.bad[id]; ok {
		u.wait = max(skipFirst, min(2*before.wait, skipMost))
	}
	k.bad[id] = u
	k.wake()
	return u.wait
}

func (k *skipping) wake() {
	select {
	case k.again <- struct{}{}:
	default:
	}
}

// toLoadAnew are the blocks that the store has to load anew.
func (k *skipping) toLoadAnew() []ulid.ULID {
	k.mtx.Lock()
	defer k.mtx.Unlock()
	var ids []ulid.ULID
	for id, u := range k.bad {
		if u.anew {
			ids = append(ids, id)
		}
	}
	return ids
}

// loadedAnew says that it has.
func (k *skipping) loadedAnew(ids []ulid.ULID) {
	k.mtx.Lock()
	defer k.mtx.Unlock()
	for _, id := range ids {
		if u, ok := k.bad[id]; ok {
			u.anew = false
			k.bad[id] = u
		}
	}
}

// Series implements storepb.StoreServer.
func (k *skipping) Series(req *storepb.SeriesRequest, srv storepb.Store_SeriesServer) error {
	// Upstream's own bound is one for each select.
	select {
	case k.places <- struct{}{}:
		defer func() { <-k.places }()
	case <-srv.Context().Done():
		return srv.Context().Err()
	}
	ctx, cancel := context.WithCancel(srv.Context())
	defer cancel()
	defer context.AfterFunc(k.open, cancel)()
	var held *heldBack
	bad, err := k.try(ctx, req.MinTime, req.MaxTime, func(out []storepb.LabelMatcher) error {
		asked := *req
		if err := leaveOut(&asked.Hints, out, &hintspb.SeriesRequestHints{BlockMatchers: out}); err != nil {
			return err
		}
		held = &heldBack{Store_SeriesServer: srv, ctx: ctx}
		return k.BucketStore.Series(&asked, held)
	})
	if err != nil {
		return err
	}
	for _, warning := range k.missed(bad, req.MinTime, req.MaxTime) {
		if err := srv.Send(storepb.NewWarnSeriesResponse(errors.New(warning))); err != nil {
			return err
		}
	}
	return held.release()
}

// try asks the store, again without a block that it fails because of, and tells which were left out in the end.
func (k *skipping) try(ctx context.Context, mint, maxt int64, ask func(out []storepb.LabelMatcher) error) (map[ulid.ULID]unreadable, error) {
	if err := k.isAway(); err != nil {
		return nil, err
	}
	for tries := 0; ; tries++ {
		bad := k.skipped()
		err := ask(without(bad))
		if err == nil {
			return bad, nil
		}
		if ctx.Err() != nil || status.Code(err) == codes.ResourceExhausted {
			return nil, err // Too much was asked for: no block is to blame.
		}
		if k.isGone(ctx, err, mint, maxt) {
			return nil, err
		}
		id, ok := k.culprit(err)
		if _, again := bad[id]; !ok || again || tries >= maxSkips {
			return nil, err
		}
		k.b.logger.Warn("a block of the bucket cannot be read; queries leave it out", "block", id, "for", k.skip(id, err), "err", err)
	}
}

// isAway is why the bucket is not asked at the moment, nil if it is.
func (k *skipping) isAway() error {
	k.mtx.Lock()
	defer k.mtx.Unlock()
	if time.Now().Before(k.away) {
		return fmt.Errorf("the bucket was away less than %s ago: %w", awayFor, k.why)
	}
	return nil
}

// isGone finds out, after an error, whether it is the bucket that is away and not a block that is broken. Providers try again and again for
// seconds: whoever asks next is to have it at once.
func (k *skipping) isGone(asker context.Context, failed error, mint, maxt int64) bool {
	ctx, cancel := context.WithTimeout(asker, probeFor)
	defer cancel()
	if _, err := k.b.bkt.Exists(ctx, probeName); err == nil || asker.Err() != nil {
		return false
	}
	v, err := k.b.catalogue.last()
	k.mtx.Lock()
	defer k.mtx.Unlock()
	k.away, k.why = time.Now().Add(awayFor), failed
	if err != nil {
		return true
	}
	for id, m := range v.blocks {
		if _, ok := k.bad[id]; !ok && m.MinTime <= maxt && mint <= m.MaxTime {
			k.bad[id] = unreadable{at: time.Now(), why: failed.Error(), anew: true}
		}
	}
	k.wake()
	return true
}

// meets tells whether a block may have something of a time.
func (k *skipping) meets(id ulid.ULID, mint, maxt int64) bool {
	v, err := k.b.catalogue.last()
	if err != nil {
		return true
	}
	m := v.blocks[id]
	return m != nil && mint <= m.MaxTime && m.MinTime <= maxt
}

func leftOut(id ulid.ULID, u unreadable) error {
	return fmt.Errorf("block %s is left out, because it could not be read: %s", id, u.why)
}

// missed are warnings of the blocks that are left out of an answer about a time.
func (k *skipping) missed(bad map[ulid.ULID]unreadable, mint, maxt int64) (warnings []string) {
	for id, u := range bad {
		if k.meets(id, mint, maxt) {
			warnings = append(warnings, leftOut(id, u).Error())
		}
	}
	slices.Sort(warnings)
	return warnings
}

// LabelValues implements storepb.StoreServer.
func (k *skipping) LabelValues(ctx context.Context, req *storepb.LabelValuesRequest) (resp *storepb.LabelValuesResponse, err error) {
	bad, err := k.try(ctx, req.Start, req.End, func(out []storepb.LabelMatcher) (err error) {
		asked := *req
		if err := leaveOut(&asked.Hints, out, &hintspb.LabelValuesRequestHints{BlockMatchers: out}); err != nil {
			return err
		}
		resp, err = k.BucketStore.LabelValues(ctx, &asked)
		return err
	})
	if err != nil {
		return nil, err
	}
	// They are in the mapped index headers of blocks, which may go.
	for i, v := range resp.Values {
		resp.Values[i] = strings.Clone(v)
	}
	resp.Warnings = append(resp.Warnings, k.missed(bad, req.Start, req.End)...)
	return resp, nil
}

// LabelNames implements storepb.StoreServer.
func (k *skipping) LabelNames(ctx context.Context, req *storepb.LabelNamesRequest) (resp *storepb.LabelNamesResponse, err error) {
	bad, err := k.try(ctx, req.Start, req.End, func(out []storepb.LabelMatcher) (err error) {
		asked := *req
		if err := leaveOut(&asked.Hints, out, &hintspb.LabelNamesRequestHints{BlockMatchers: out}); err != nil {
			return err
		}
		resp, err = k.BucketStore.LabelNames(ctx, &asked)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, n := range resp.Names {
		resp.Names[i] = strings.Clone(n)
	}
	resp.Warnings = append(resp.Warnings, k.missed(bad, req.Start, req.End)...)
	return resp, nil
}

// culprit is the block that an error is about.
func (k *skipping) culprit(err error) (ulid.ULID, bool) {
	v, lookErr := k.b.catalogue.last()
	for _, name := range blockName.FindAllString(err.Error(), -1) {
		id, parseErr := ulid.ParseStrict(name)
		if parseErr == nil && (lookErr != nil || v.blocks[id] != nil) {
			return id, true
		}
	}
	return ulid.ULID{}, false
}

// without are matchers of all blocks but these; none for all.
func without(bad map[ulid.ULID]unreadable) []storepb.LabelMatcher {
	if len(bad) == 0 {
		return nil
	}
	var names []string
	for id := range bad {
		names = append(names, id.String())
	}
	slices.Sort(names)
	return []storepb.LabelMatcher{{Type: storepb.LabelMatcher_NRE, Name: block.BlockIDLabel, Value: strings.Join(names, "|")}}
}

// leaveOut puts matchers of blocks into a question.
func leaveOut(to **types.Any, out []storepb.LabelMatcher, hints proto.Message) (err error) {
	if len(out) == 0 {
		return nil
	}
	if *to, err = types.MarshalAny(hints); err != nil {
		return fmt.Errorf("leave out blocks that cannot be read: %w", err)
	}
	return nil
}

// heldBack keeps an answer until it is known to be whole.
type heldBack struct {
	storepb.Store_SeriesServer
	ctx     context.Context
	answers []*storepb.SeriesResponse
}

// Context ends when the store is closed, too.
func (h *heldBack) Context() context.Context { return h.ctx }

// Send implements storepb.Store_SeriesServer.
func (h *heldBack) Send(r *storepb.SeriesResponse) error {
	h.answers = append(h.answers, r)
	return nil
}

func (h *heldBack) release() error {
	for _, r := range h.answers {
		if err := h.Store_SeriesServer.Send(r); err != nil {
			return err
		}
	}
	return nil
}
