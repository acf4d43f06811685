package bucket

import (
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/extprom"

	"github.com/tocsin-io/tocsin/appliance/config"
)

// Objects is the bucket without anything that is about blocks: what configuration and targets are read from, before there is a
// store, and by commands that have none.
type Objects struct {
	objstore.Bucket
	client *client
	kit    kitLogger
}

// NewObjects makes a client. It does not ask the bucket anything. A nil registerer leaves the metrics out.
func NewObjects(logger *slog.Logger, reg prometheus.Registerer, cfg *config.Bucket) (*Objects, error) {
	o := &Objects{kit: kitLogger{logger}}
	var err error
	if o.client, err = newClient(o.kit, cfg); err != nil {
		return nil, err
	}
	o.Bucket = o.client
	if reg != nil {
		o.Bucket = objstore.WrapWithMetrics(o.client, extprom.WrapRegistererWithPrefix("thanos_", reg), "config")
	}
	return o, nil
}

// Prepare makes a client of the new configuration. Its apply uses it from then on.
func (o *Objects) Prepare(cfg *config.Config) (apply func() error, err error) {
	if cfg.Bucket == nil {
		return nil, errors.New("the bucket section is gone, which needs a restart")
	}
	return o.client.prepare(o.kit, cfg.Bucket)
}
