// Package bucket owns what Tocsin has in object storage: the upload of finished blocks, once and complete, reading them back,
// compaction, downsampling, retention.
//
// Finished blocks of the store enter, and what the ledger says is missing of them; blocks that stock Thanos reads leave, and
// series of times that the local data no longer have, as a storage.Queryable.
//
// It refuses to be waited for: a bucket that is away costs delay, never a scrape or a query of local data. It never shows a
// credential, and what it reads from the bucket it trusts as little as any other input.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/block"
	"github.com/thanos-io/thanos/pkg/extprom"
	"golang.org/x/sync/errgroup"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/store"
)

// metaConcurrency is how many meta.json are read at the same time.
const metaConcurrency = 16

// Gaps tells what this replica has no data of its own of. A store.Ledger is one.
type Gaps interface {
	// Missing is what is missing within [mint, maxt], in Unix milliseconds; nothing means that the data are whole.
	Missing(mint, maxt int64) []store.Missing
}

// Options is what a Bucket needs. All but Replicas, Mesh and Gaps is required.
type Options struct {
	Logger     *slog.Logger
	Registerer prometheus.Registerer
	// Dir holds what can be made anew from the bucket: staged blocks, index headers, copies of meta.json, parts of blocks.
	Dir string
	// Config has a bucket section.
	Config *config.Config
	// Replica is the name of this one.
	Replica string
	// External are the labels that its blocks bear.
	External func() labels.Labels
	// Replicas are the names of the replicas that live, this one among them; nil stands for this one alone.
	Replicas func() []string
	// Mesh is how the replicas' caches reach each other; nil where they do not.
	Mesh  Mesh
	Store *store.Store
	// Gaps is nil where nothing can be missing: a replica alone.
	Gaps Gaps
	// Window is how long the smallest block is.
	Window time.Duration
}

func (o *Options) validate() error {
	switch {
	case o.Logger == nil, o.Registerer == nil, o.External == nil, o.Store == nil:
		return errors.New("bucket: an option is missing")
	case o.Config == nil || o.Config.Bucket == nil:
		return errors.New("bucket: the configuration has no bucket section")
	case o.Dir == "" || o.Replica == "":
		return errors.New("bucket: Options.Dir or Options.Replica is missing")
	case o.External().IsEmpty():
		return errors.New("bucket: there are no external labels: blocks in object storage need at least one, such as replica, to tell whose they are")
	case o.Window < time.Millisecond:
		return fmt.Errorf("bucket: a window of %s is none", o.Window)
	}
	if o.Replicas == nil {
		alone := []string{o.Replica}
		o.Replicas = func() []string { return alone }
	}
	return nil
}

// Bucket is one replica's share in the cluster's object storage.
type Bucket struct {
	o      Options
	logger *slog.Logger
	kit    kitLogger
	// client is the bucket of the configuration in force, behind bkt.
	client *client
	bkt    objstore.InstrumentedBucket
	// metas reads the meta.json of all blocks, for everybody who wants to know what is there.
	metas     *block.BaseFetcher
	catalogue *catalogue
	uploader  *uploader
	reader    *reader
	compactor *compactor
	// retention is the one of the configuration in force.
	retention atomic.Pointer[config.BucketRetention]
}

// New makes the client. It does not ask the bucket anything: that may be away.
func New(o Options) (*Bucket, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	b := &Bucket{o: o, logger: o.Logger, kit: kitLogger{slog.New(demoted{o.Logger.Handler()})}}
	var err error
	if b.client, err = newClient(b.kit, o.Config.Bucket); err != nil {
		return nil, err
	}
	// The names that dashboards for Thanos know.
	reg := extprom.WrapRegistererWithPrefix("thanos_", o.Registerer)
	b.bkt = objstore.WrapWithMetrics(b.client, reg, "bucket")
	b.metas, err = block.NewBaseFetcher(b.kit, metaConcurrency, metaGuard{b.bkt}, lister{b.kit, b.bkt},
		filepath.Join(o.Dir, "meta"), reg)
	if err != nil {
		return nil, fmt.Errorf("read the blocks of the bucket: %w", err)
	}
	b.catalogue = newCatalogue(b, reg)
	b.retention.Store(&o.Config.Bucket.Retention)
	b.uploader = newUploader(b)
	if b.compactor, err = newCompactor(b); err != nil {
		return nil, err
	}
	if b.reader, err = newReader(b, reg); err != nil {
		return nil, err
	}
	return b, nil
}

// Run works until ctx ends.
func (b *Bucket) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.catalogue.run(ctx) })
	g.Go(func() error { return b.uploader.run(ctx) })
	g.Go(func() error { return b.reader.run(ctx) })
	g.Go(func() error { return b.reader.share.run(ctx) })
	g.Go(func() error { return b.compactor.run(ctx) })
	return g.Wait()
}

// Prepare makes a client of the new configuration. Its apply uses it from then on.
func (b *Bucket) Prepare(cfg *config.Config) (apply func() error, err error) {
	if cfg.Bucket == nil {
		return nil, errors.New("the bucket section is gone, which needs a restart")
	}
	use, err := b.client.prepare(b.kit, cfg.Bucket)
	if err != nil {
		return nil, err
	}
	return func() error {
		b.retention.Store(&cfg.Bucket.Retention)
		b.reader.share.configure(cfg.Bucket.Cache)
		return use()
	}, nil
}

// Close ends what New began. Nobody may read any more.
func (b *Bucket) Close() error { return errors.Join(b.reader.close(), b.client.Close()) }

// whole tells whether this replica lacks nothing of [from, to), in Unix milliseconds.
func (b *Bucket) whole(from, to int64) bool {
	return b.o.Gaps == nil || len(b.o.Gaps.Missing(from, to-1)) == 0
}

// shared are the external labels that all replicas of the cluster have.
func (b *Bucket) shared() labels.Labels { return config.Shared(b.o.External()) }
