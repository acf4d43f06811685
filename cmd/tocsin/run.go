package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/alecthomas/units"
	"github.com/grafana/regexp"
	remoteapi "github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/common/promslog"
	commonversion "github.com/prometheus/common/version"

	"github.com/tocsin-io/tocsin/appliance"
	"github.com/tocsin-io/tocsin/appliance/alert"
	"github.com/tocsin-io/tocsin/appliance/evaluate"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/query"
	"github.com/tocsin-io/tocsin/appliance/store"
	"github.com/tocsin-io/tocsin/web"
)

const (
	appliancePrometheus   = appliance.PrometheusVersion
	applianceAlertmanager = appliance.AlertmanagerVersion
)

// defaultConfigFile may be absent: then the built-in configuration holds.
const defaultConfigFile = "/etc/tocsin/tocsin.yml"

// runCmd holds what needs a restart; what can be reloaded is in the configuration file. Names are Prometheus's where
// Prometheus has the flag; Alertmanager's carry the prefix alertmanager.
type runCmd struct {
	ConfigFile string `name:"config.file" placeholder:"FILE" help:"Configuration file. Default: /etc/tocsin/tocsin.yml, and the built-in configuration where that does not exist."`

	StoragePath         string           `name:"storage.path" default:"data" help:"Data directory."`
	StorageRequireMount bool             `name:"storage.require-mount" help:"Refuse to start unless the data directory is a mount point, so that a volume that is missing is noticed."`
	MinBlockDuration    model.Duration   `name:"storage.tsdb.min-block-duration" hidden:"" default:"2h" help:"Shortest block, for tests."`
	MaxBlockDuration    model.Duration   `name:"storage.tsdb.max-block-duration" hidden:"" default:"0s" help:"Longest block; 0 is a tenth of the retention, at most 31d. For tests."`
	MemorySnapshot      bool             `name:"storage.tsdb.memory-snapshot" default:"true" negatable:"" help:"Write what is in memory to a snapshot when stopping, so that the next start reads that instead of replaying the write-ahead log."`
	WALSegmentSize      units.Base2Bytes `name:"storage.tsdb.wal-segment-size" hidden:"" default:"0B" help:"Size of the segments of the write-ahead log, for tests."`
	RemoteFlushDeadline model.Duration   `name:"storage.remote.flush-deadline" default:"1m" help:"How long to wait for samples to be flushed to remote_write on stopping or on a reload."`
	ReadSampleLimit     int              `name:"storage.remote.read-sample-limit" default:"50000000" help:"Most samples in one answer to a remote read that is not streamed. 0 is no limit."`
	ReadConcurrentLimit int              `name:"storage.remote.read-concurrent-limit" default:"10" help:"Most remote reads at once. 0 is no limit."`
	ReadMaxBytesInFrame int              `name:"storage.remote.read-max-bytes-in-frame" default:"1048576" help:"Most bytes in one frame of a streamed remote read, before encoding."`

	WebListen         []string       `name:"web.listen-address" default:"0.0.0.0:9090" sep:"none" help:"Address of the HTTP door. Repeatable; port 0 takes a free one."`
	ExternalURL       string         `name:"web.external-url" placeholder:"URL" help:"URL under which people reach this replica, for links in notifications. Its path is the route prefix unless that is given."`
	RoutePrefix       string         `name:"web.route-prefix" placeholder:"PATH" help:"Path below which everything is served. Default: the path of --web.external-url."`
	ReadTimeout       model.Duration `name:"web.read-timeout" default:"5m" help:"Longest time to read a request, and to keep an idle connection."`
	MaxConnections    int            `name:"web.max-connections" default:"512" help:"Most connections at once, over all listeners."`
	EnableLifecycle   bool           `name:"web.enable-lifecycle" help:"Let POST /-/quit stop the process. (POST /-/reload always works.)"`
	EnableAdmin       bool           `name:"web.enable-admin-api" help:"Serve /api/v1/admin: delete series, snapshot."`
	EnableRemoteWrite bool           `name:"web.enable-remote-write-receiver" help:"Take samples by remote write at /api/v1/write."`
	RemoteWriteTypes  []string       `name:"web.remote-write-receiver.accepted-protobuf-messages" default:"prometheus.WriteRequest,io.prometheus.write.v2.Request" help:"Remote write messages to take. Repeatable."`
	EnableOTLP        bool           `name:"web.enable-otlp-receiver" help:"Take metrics by OTLP at /api/v1/otlp/v1/metrics."`
	CORSOrigin        string         `name:"web.cors.origin" default:".*" help:"Regular expression of the origins that CORS allows; it is anchored."`

	AlertmanagerListen    string         `name:"alertmanager.listen-address" default:"0.0.0.0:9093" help:"Address where the Alertmanager API is at the root. Empty is off; it is always under /alertmanager of the HTTP door."`
	AlertmanagerRetention model.Duration `name:"alertmanager.data.retention" default:"120h" help:"How long silences and the notification log are kept after they have ended."`
	QueueCapacity         int            `name:"alertmanager.notification-queue-capacity" default:"10000" help:"Most alerts that wait to be delivered to Alertmanagers."`
	BatchSize             int            `name:"alertmanager.notification-batch-size" default:"256" help:"Most alerts in one request to an Alertmanager."`

	ClusterListen string `name:"cluster.listen-address" default:"0.0.0.0:9094" help:"Address of the gossip between replicas, TCP and UDP. Not bound without a cluster section."`
	GRPCListen    string `name:"grpc.listen-address" default:"0.0.0.0:10901" help:"Address of gRPC between replicas, and of the Thanos StoreAPI for readers with a certificate of the cluster. Not bound without cluster.key_file."`

	LookbackDelta  model.Duration `name:"query.lookback-delta" default:"5m" help:"How far back an instant may look for the newest sample of a series."`
	QueryTimeout   model.Duration `name:"query.timeout" default:"2m" help:"Longest time a query may take."`
	MaxConcurrency int            `name:"query.max-concurrency" default:"20" help:"Most queries at once."`
	Engine         string         `name:"query.engine" enum:"prometheus,thanos" default:"prometheus" help:"PromQL engine: prometheus, or thanos, which uses several cores for one query and takes more memory, and leaves what it does not know to the other one."`
	MaxSamples     int            `name:"query.max-samples" default:"50000000" help:"Most samples a query may hold in memory."`

	OutageTolerance    model.Duration `name:"rules.alert.for-outage-tolerance" default:"1h" help:"Longest outage after which the for state of alerts is restored."`
	ForGracePeriod     model.Duration `name:"rules.alert.for-grace-period" default:"0s" help:"Shortest for whose state is restored, and how long at least a restored alert stays pending. Prometheus has 10m, with which a restart begins every shorter for anew."`
	ResendDelay        model.Duration `name:"rules.alert.resend-delay" default:"1m" help:"Shortest time between two sends of one alert to an Alertmanager."`
	MaxConcurrentEvals int64          `name:"rules.max-concurrent-evals" default:"4" help:"With --enable-feature=concurrent-rule-eval: most rules at once that do not depend on each other."`

	AutoMemLimit      bool    `name:"auto-gomemlimit" default:"true" negatable:"" help:"Keep the Go runtime's memory below a share of the machine's or cgroup's."`
	AutoMemLimitRatio float64 `name:"auto-gomemlimit.ratio" default:"0.9" help:"That share."`

	Features []string `name:"enable-feature" sep:"," placeholder:"FEATURE" help:"Prometheus's experimental features: ${features}."`

	LogLevel  string `name:"log.level" enum:"debug,info,warn,error" default:"info" help:"Least severity that is logged: ${enum}."`
	LogFormat string `name:"log.format" enum:"logfmt,json" default:"logfmt" help:"Format of the log: ${enum}."`
}

// Run runs a replica until it is told to stop.
func (c *runCmd) Run(k *kong.Context) error {
	logger, err := c.newLogger()
	if err != nil {
		return err
	}
	opts, err := c.options(k, logger)
	if err != nil {
		return usageError{err}
	}
	// From here on: a reload that is asked for while the process starts must not end it, as the signal does by default.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	logger.Info("starting tocsin", "version", opts.Version.Version, "revision", opts.Version.Revision,
		"prometheus", appliancePrometheus, "alertmanager", applianceAlertmanager)
	n := newNotifier(logger)
	opts.OnReload = n.reloading
	a, err := appliance.New(opts)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		logger.Info("stopping; a second signal stops at once, without writing anything more")
		// The runtime's own handling is back: the next signal ends the process.
		stop()
	}()
	go func() {
		for range hup {
			// Reload itself logs and counts what went wrong.
			_ = a.Reload(ctx)
		}
	}()
	telling, stopTelling := context.WithCancel(context.Background())
	var told sync.WaitGroup
	told.Go(func() { n.run(telling, a) })
	err = a.Run(ctx)
	stopTelling()
	told.Wait()
	logger.Info("stopped")
	return err
}

func (c *runCmd) newLogger() (*slog.Logger, error) {
	level, format := promslog.NewLevel(), promslog.NewFormat()
	if err := errors.Join(level.Set(c.LogLevel), format.Set(c.LogFormat)); err != nil {
		return nil, fmt.Errorf("set up the log: %w", err)
	}
	return promslog.New(&promslog.Config{Level: level, Format: format}), nil
}

// options translates the flags.
func (c *runCmd) options(k *kong.Context, logger *slog.Logger) (appliance.Options, error) {
	for flag, address := range map[string]string{
		"cluster.listen-address": c.ClusterListen, "grpc.listen-address": c.GRPCListen,
	} {
		if _, err := net.ResolveTCPAddr("tcp", address); err != nil {
			return appliance.Options{}, fmt.Errorf("--%s=%q is not an address host:port: %w", flag, address, err)
		}
	}
	cors, err := regexp.Compile("^(?s:" + c.CORSOrigin + ")$")
	if err != nil {
		return appliance.Options{}, fmt.Errorf("--web.cors.origin: %w", err)
	}
	var messages remoteapi.MessageTypes
	for _, m := range c.RemoteWriteTypes {
		t := remoteapi.WriteMessageType(m)
		if err := t.Validate(); err != nil {
			return appliance.Options{}, fmt.Errorf("--web.remote-write-receiver.accepted-protobuf-messages: %w", err)
		}
		messages = append(messages, t)
	}
	v := buildVersion()
	// The Alertmanager's status shows these, and amtool compares its own version with it.
	commonversion.Version, commonversion.Revision, commonversion.Branch, commonversion.BuildDate = applianceAlertmanager, v.Revision, v.Branch, v.BuildDate
	o := appliance.Options{
		Logger:         logger,
		Registry:       prometheus.NewRegistry(),
		ConfigFile:     c.ConfigFile,
		ConfigOptional: c.ConfigFile == "",
		ExternalURL:    c.ExternalURL,
		StoragePath:    c.StoragePath,
		EnableQuit:     c.EnableLifecycle,
		Version:        v,
		Flags:          flagValues(k),
		Web: web.Options{
			Listen:             c.WebListen,
			AlertmanagerListen: c.AlertmanagerListen,
			RoutePrefix:        c.RoutePrefix,
			MaxConnections:     c.MaxConnections,
			ReadTimeout:        time.Duration(c.ReadTimeout),
		},
		Store: store.Options{
			RequireMount:        c.StorageRequireMount,
			RemoteFlushDeadline: time.Duration(c.RemoteFlushDeadline),
			MinBlockDuration:    time.Duration(c.MinBlockDuration),
			MaxBlockDuration:    time.Duration(c.MaxBlockDuration),
			WALSegmentSizeBytes: int(c.WALSegmentSize),

			EnableMemorySnapshotOnShutdown: c.MemorySnapshot,
		},
		Evaluate: evaluate.Options{
			OutageTolerance: time.Duration(c.OutageTolerance),
			ForGracePeriod:  time.Duration(c.ForGracePeriod),
			ResendDelay:     time.Duration(c.ResendDelay),
		},
		Mesh: mesh.Options{ListenAddress: c.ClusterListen, GRPCListenAddress: c.GRPCListen},
		Alert: alert.Options{
			Retention:     time.Duration(c.AlertmanagerRetention),
			QueueCapacity: c.QueueCapacity,
			BatchSize:     c.BatchSize,
		},
		Query: query.Options{
			Timeout:             time.Duration(c.QueryTimeout),
			LookbackDelta:       time.Duration(c.LookbackDelta),
			MaxConcurrency:      c.MaxConcurrency,
			MaxSamples:          c.MaxSamples,
			Engine:              c.Engine,
			EnableAdmin:         c.EnableAdmin,
			EnableRemoteWrite:   c.EnableRemoteWrite,
			EnableOTLP:          c.EnableOTLP,
			RemoteWriteMessages: messages,
			RemoteRead: query.RemoteRead{
				SampleLimit:      c.ReadSampleLimit,
				ConcurrencyLimit: c.ReadConcurrentLimit,
				MaxBytesInFrame:  c.ReadMaxBytesInFrame,
			},
			CORSOrigin: cors,
		},
	}
	if o.ConfigOptional {
		o.ConfigFile = defaultConfigFile
	}
	if c.AutoMemLimit {
		if c.AutoMemLimitRatio <= 0 || c.AutoMemLimitRatio > 1 {
			return o, fmt.Errorf("--auto-gomemlimit.ratio=%v is not between 0 and 1", c.AutoMemLimitRatio)
		}
		o.MemoryLimitRatio = c.AutoMemLimitRatio
	}
	return o, c.applyFeatures(&o)
}

func buildVersion() appliance.Version {
	v := appliance.Version{Version: version, Revision: revision, Branch: branch, BuildDate: buildDate}
	for _, s := range []*string{&v.Version, &v.Revision, &v.Branch, &v.BuildDate} {
		if *s == "" {
			*s = "unknown"
		}
	}
	return v
}
