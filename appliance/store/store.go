// Package store owns the data directory: its lock, its marker, the TSDB with
// its write-ahead log and blocks, and the remote storage beside it.
//
// Samples enter through Appender. Queries leave through Querier, ChunkQuerier
// and ExemplarQuerier, local data merged with what remote_read brings; what
// remote_write sends leaves from the write-ahead log.
//
// It refuses a directory that another process holds, one that looks like the
// wrong volume, and one that holds a bare Prometheus TSDB. It does not refuse
// damaged data: that is set aside under <Dir>/quarantine and the rest served.
// Until replay is done everything answers tsdb.ErrNotReady.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	promconfig "github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/storage/remote"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"
	"github.com/prometheus/prometheus/util/features"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// Errors that callers can tell apart with errors.Is.
var (
	// ErrLocked means that another process holds the data directory.
	ErrLocked = errors.New("data directory is in use")
	// ErrWrongVolume means that the data directory does not look like the one
	// that was meant.
	ErrWrongVolume = errors.New("data directory refused")
	// ErrCloseTimeout means that the TSDB did not close in time.
	ErrCloseTimeout = errors.New("data directory was not closed in time")
	errClosed       = errors.New("store is closed")
	errStopped      = errors.New("stop was asked for")
)

// progressInterval is how often a long start writes its progress to the log.
const progressInterval = 2 * time.Second

// Options configures a Store. Dir is required; a zero value elsewhere means
// what stock Prometheus does.
type Options struct {
	// Dir is the data directory. It is created when absent.
	Dir string
	// Config is the configuration to start with. Nil means all defaults.
	Config *config.Config

	Logger     *slog.Logger
	Registerer prometheus.Registerer

	// RequireMount refuses a Dir that is not a mount point: for machines whose
	// data volume may be absent at boot.
	RequireMount bool
	// CloseTimeout bounds how long Close waits for open queriers (30s).
	CloseTimeout time.Duration

	// ScrapeManager gives remote_write the metadata of targets.
	ScrapeManager remote.ReadyScrapeManager
	// RemoteFlushDeadline is how long remote_write may flush at stop (1m).
	RemoteFlushDeadline time.Duration
	// EnableTypeAndUnitLabels is the feature flag of that name.
	EnableTypeAndUnitLabels bool

	MinBlockDuration               time.Duration // 2h
	MaxBlockDuration               time.Duration // a tenth of the retention, at most 31d
	MaxBlockChunkSegmentSizeBytes  int64
	WALSegmentSizeBytes            int
	WALCompression                 compression.Type // snappy
	HeadChunksWriteQueueSize       int
	SamplesPerChunk                int
	StripeSize                     int
	BlockReloadInterval            time.Duration // 1m
	DisableOverlappingCompaction   bool
	EnableDelayedCompaction        bool
	CompactionDelayMaxPercent      int
	EnableMemorySnapshotOnShutdown bool
	UseUncachedIO                  bool
	BlockCompactionExcludeFunc     tsdb.BlockExcludeFilterFunc
	// Features is told which TSDB features are on. It may be nil.
	Features features.Collector

	// isMount tells whether a directory is a mount point; tests replace it.
	isMount func(dir string) (bool, error)
	// disk tells how many bytes of the disk are free, and how many there are; tests replace it.
	disk func(dir string) (free, size int64, err error)
}

func (o *Options) validate() error {
	if o.Dir == "" {
		return errors.New("store needs a data directory")
	}
	if o.WALSegmentSizeBytes != 0 && (o.WALSegmentSizeBytes < 10<<20 || o.WALSegmentSizeBytes > 256<<20) {
		return fmt.Errorf("WAL segment size must be from 10MB to 256MB, got %d bytes", o.WALSegmentSizeBytes)
	}
	if o.MaxBlockChunkSegmentSizeBytes != 0 && o.MaxBlockChunkSegmentSizeBytes < 1<<20 {
		return fmt.Errorf("block chunk segment size must be at least 1MB, got %d bytes", o.MaxBlockChunkSegmentSizeBytes)
	}
	if o.StripeSize < 0 || o.StripeSize&(o.StripeSize-1) != 0 {
		return fmt.Errorf("stripe size must be a power of two, got %d", o.StripeSize)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Registerer == nil {
		// The TSDB wants a registerer that is not nil in places; one that
		// nobody gathers is the same as none.
		o.Registerer = prometheus.NewRegistry()
	}
	if o.CloseTimeout <= 0 {
		o.CloseTimeout = 30 * time.Second
	}
	if o.RemoteFlushDeadline <= 0 {
		o.RemoteFlushDeadline = time.Minute
	}
	if o.MinBlockDuration <= 0 {
		o.MinBlockDuration = time.Duration(tsdb.DefaultBlockDuration) * time.Millisecond
	}
	if o.BlockReloadInterval <= 0 {
		o.BlockReloadInterval = time.Minute
	}
	if o.CompactionDelayMaxPercent <= 0 || o.CompactionDelayMaxPercent > 100 {
		o.CompactionDelayMaxPercent = tsdb.DefaultCompactionDelayMaxPercent
	}
	if o.WALCompression == "" {
		o.WALCompression = compression.Snappy
	}
	if o.ScrapeManager == nil {
		o.ScrapeManager = noScrapeManager{}
	}
	if o.isMount == nil {
		o.isMount = isMountPoint
	}
	if o.disk == nil {
		o.disk = diskOf
	}
	abs, err := filepath.Abs(o.Dir)
	if err != nil {
		return fmt.Errorf("resolve data directory %s: %w", o.Dir, err)
	}
	o.Dir = abs
	return nil
}

// noScrapeManager stands for a process that does not scrape: remote_write then
// sends no metadata.
type noScrapeManager struct{}

func (noScrapeManager) Get() (*scrape.Manager, error) {
	return nil, errors.New("nothing is scraped")
}

// Store is the data directory of one process.
type Store struct {
	opts    Options
	logger  *slog.Logger
	metrics *metrics
	// tsdbMetrics are those of the TSDB that is open.
	tsdbMetrics *tsdbMetrics
	lock        io.Closer

	held   heldMarkers
	oldest oldestOOO
	hold   *hold // Nil without Hold.
	// importing is held by the import that is under way.
	importing sync.Mutex
	commits   commits
	strings   *interner
	local     *local
	remote    *remote.Storage
	merged    storage.Storage // local and remote_read
	// remoteWrite is on while any remote_write is configured.
	remoteWrite atomic.Bool

	ready    chan struct{}
	progress atomic.Pointer[string]

	mtx      sync.Mutex
	settings settings
	// openedWith are the settings that the TSDB was opened with.
	openedWith settings
	running    bool
	closed     bool
	opening    chan struct{} // closed when the TSDB is open or failed; nil before Run
	closeErr   error
	closeOne   sync.Once
}

type metrics struct {
	quarantined prometheus.Gauge
	openQueries prometheus.GaugeFunc
}

// New takes the data directory: it checks that it is the right one, locks it,
// and marks it. Nothing is read or replayed before Run.
func New(opts Options) (*Store, error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	lock, err := acquireDir(opts)
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts:     opts,
		logger:   opts.Logger,
		lock:     lock,
		strings:  newInterner(),
		ready:    make(chan struct{}),
		settings: settingsOf(prometheusOf(opts.Config)),
	}
	s.local = &local{
		stats:           tsdb.NewDBStats(),
		startTimeMargin: 2 * opts.MinBlockDuration.Milliseconds(),
	}
	s.say("waiting to open the data directory")

	reg := promauto.With(opts.Registerer)
	s.metrics = &metrics{
		quarantined: reg.NewGauge(prometheus.GaugeOpts{
			Name: "tocsin_storage_quarantined_blocks",
			Help: "Blocks that were found broken and set aside under quarantine in the data directory.",
		}),
		openQueries: reg.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tocsin_storage_open_queriers",
			Help: "Queriers on the local data that are open now. One that stays open holds back compaction.",
		}, func() float64 { return float64(s.local.open.Load()) }),
	}
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_storage_interned_strings",
		Help: "Distinct label names and values that the series in the head share.",
	}, func() float64 { return float64(s.strings.len()) })
	reg.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "tocsin_storage_ready",
		Help: "Whether replay is done and the local data answers (1) or not (0).",
	}, func() float64 {
		if s.local.db.Load() != nil {
			return 1
		}
		return 0
	})

	s.tsdbMetrics = &tsdbMetrics{}
	opts.Registerer.MustRegister(s.tsdbMetrics)

	s.remote = remote.NewStorage(s.logger, opts.Registerer, s.StartTime,
		s.TSDBDir(), opts.RemoteFlushDeadline, opts.ScrapeManager, opts.EnableTypeAndUnitLabels)
	s.merged = storage.NewFanout(s.logger, s.local, s.remote)
	return s, nil
}

// TSDBDir is where the TSDB is: <Dir>/tsdb.
func (s *Store) TSDBDir() string { return filepath.Join(s.opts.Dir, "tsdb") }

// Ready is closed once replay is done and everything answers.
func (s *Store) Ready() <-chan struct{} { return s.ready }

// Condition says in a sentence how the store is.
func (s *Store) Condition() (ready bool, sentence string) {
	if s.local.db.Load() != nil {
		return true, "serving"
	}
	sentence = *s.progress.Load()
	switch sentence {
	case sayReplay:
		sentence = s.replaySentence(sentence, "replaying the write-ahead log")
	case sayReplayAgain:
		sentence = s.replaySentence(sentence, "replaying the write-ahead log again after its repair")
	}
	return false, sentence
}

func (s *Store) say(format string, args ...any) {
	sentence := format
	if len(args) > 0 {
		sentence = fmt.Sprintf(format, args...)
	}
	s.progress.Store(&sentence)
}

const (
	sayReplay      = "opening blocks and memory-mapped chunks"
	sayReplayAgain = "opening again after the repair of the write-ahead log"
)

func (s *Store) replaySentence(before, during string) string {
	st := s.local.stats.Head.WALReplayStatus.GetWALReplayStatus()
	if st.Max == 0 && st.Current == 0 {
		return before
	}
	return fmt.Sprintf("%s: segment %d of %d", during, st.Current-st.Min+1, st.Max-st.Min+1)
}

// Run opens the TSDB, which replays the write-ahead log, and returns when ctx
// ends. It leaves the TSDB open for those who stop later; Close closes it. The
// exception is a ctx that ends during replay: then nobody uses it yet.
func (s *Store) Run(ctx context.Context) error {
	s.mtx.Lock()
	if s.running || s.closed {
		s.mtx.Unlock()
		return errors.New("store runs once, before it is closed")
	}
	s.running = true
	done := make(chan struct{})
	s.opening = done
	s.mtx.Unlock()

	var (
		db      *tsdb.DB
		openErr error
		start   = time.Now()
	)
	go func() {
		defer close(done)
		db, openErr = s.open(ctx)
	}()

	ticker := time.NewTicker(progressInterval)
	defer ticker.Stop()
	ended := ctx.Done()
wait:
	for {
		select {
		case <-done:
			break wait
		case <-ticker.C:
			_, sentence := s.Condition()
			s.logger.Info("data directory is not ready yet", "progress", sentence, "elapsed", time.Since(start).Round(time.Second))
		case <-ended:
			// The TSDB cannot be interrupted in replay.
			s.logger.Info("stop was asked for during replay, closing as soon as it is done")
			ended = nil
		}
	}
	if errors.Is(openErr, errStopped) {
		s.say("stopped")
		return nil
	}
	if openErr != nil {
		s.say("data directory could not be opened: %s", openErr)
		return fmt.Errorf("open data directory %s: %w", s.opts.Dir, openErr)
	}
	if ctx.Err() != nil {
		s.say("stopped")
		if err := db.Close(); err != nil {
			return fmt.Errorf("close TSDB: %w", err)
		}
		return nil
	}
	if err := s.publish(db); err != nil {
		return err
	}
	s.logger.Info("data directory is ready", "dir", s.opts.Dir, "elapsed", time.Since(start), "series", db.Head().NumSeries(), "blocks", len(db.Blocks()))
	<-ctx.Done()
	return nil
}

// publish makes db what everybody uses, with the newest settings: those that
// were applied during replay are not in the options it was opened with.
func (s *Store) publish(db *tsdb.DB) error {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	if s.closed {
		if err := db.Close(); err != nil {
			return fmt.Errorf("close TSDB: %w", err)
		}
		return errClosed
	}
	if err := db.ApplyConfig(s.settings.upstream(s.openedWith)); err != nil {
		return errors.Join(fmt.Errorf("apply storage settings: %w", err), db.Close())
	}
	if err := s.local.deletions.find(db); err != nil {
		return errors.Join(err, db.Close())
	}
	db.SetWriteNotified(s.remote)
	registerHeadMetrics(s.opts.Registerer, db)
	s.local.db.Store(db)
	close(s.ready)
	return nil
}

// Close closes the remote storage, the TSDB, and lets go of the directory. It
// may be called more than once, and without Run. Whoever appends or queries
// must have stopped.
func (s *Store) Close() error {
	s.closeOne.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Store) close() error {
	s.mtx.Lock()
	s.closed = true
	opening := s.opening
	s.mtx.Unlock()

	var errs []error
	// First, since its watchers read the write-ahead log. It takes up to the
	// flush deadline for each remote_write that does not answer, so that the
	// time for the TSDB begins after it.
	if err := s.remote.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close remote storage: %w", err))
	}
	timeout := time.NewTimer(s.opts.CloseTimeout)
	defer timeout.Stop()
	if opening != nil {
		select {
		case <-opening:
		case <-timeout.C:
			return errors.Join(append(errs, fmt.Errorf("%w: still replaying after %s", ErrCloseTimeout, s.opts.CloseTimeout))...)
		}
	}
	if db := s.local.db.Swap(nil); db != nil {
		s.say("closing")
		done := make(chan error, 1)
		go func() { done <- db.Close() }()
		select {
		case err := <-done:
			if err != nil {
				errs = append(errs, fmt.Errorf("close TSDB: %w", err))
			}
		case <-timeout.C:
			// The lock is kept: the TSDB is still open, and the end of the
			// process releases both.
			errs = append(errs, fmt.Errorf("%w: after %s %d queriers are still open",
				ErrCloseTimeout, s.opts.CloseTimeout, s.local.open.Load()))
			return errors.Join(errs...)
		}
	}
	s.say("closed")
	if err := s.lock.Close(); err != nil {
		errs = append(errs, fmt.Errorf("release lock: %w", err))
	}
	return errors.Join(errs...)
}

func prometheusOf(cfg *config.Config) *promconfig.Config {
	if cfg == nil {
		return nil
	}
	return cfg.Prometheus
}
