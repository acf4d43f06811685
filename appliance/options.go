package appliance

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tocsin-io/tocsin/appliance/alert"
	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/evaluate"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/appliance/query"
	"github.com/tocsin-io/tocsin/appliance/scrape"
	"github.com/tocsin-io/tocsin/appliance/store"
	"github.com/tocsin-io/tocsin/web"
)

// Options are what the command line says. The sections are the packages' own options: New fills in what the packages
// need of each other, the caller only what a flag sets.
type Options struct {
	Logger *slog.Logger
	// Registry takes every metric of the process.
	Registry *prometheus.Registry
	// ConfigFile is read at start and at each reload. Where ConfigOptional is set and the file is absent, the
	// built-in configuration holds.
	ConfigFile     string
	ConfigOptional bool
	// ExternalURL is where people reach this replica; empty is this host's name with the port that is bound.
	ExternalURL string
	// StoragePath is the data directory.
	StoragePath string
	// EnableQuit switches POST /-/quit on.
	EnableQuit bool
	// OnReload is told when a reload begins and when it has ended, however it did. Nil is told nothing.
	OnReload func(begun bool)
	// MemoryLimitRatio is the share of the machine's or cgroup's memory that the Go runtime tries to stay below; 0
	// leaves the runtime alone.
	MemoryLimitRatio float64
	// Version is this program's own; the versions of the embedded programs are read from the build.
	Version Version
	// Flags are shown by /api/v1/status/flags.
	Flags map[string]string

	Web      web.Options
	Store    store.Options
	Scrape   scrape.Options
	Evaluate evaluate.Options
	Mesh     mesh.Options
	Alert    alert.Options
	Query    query.Options
}

// load reads the configuration that holds now.
func (o *Options) load(self config.Self) (*config.Config, error) {
	if o.ConfigOptional {
		if _, err := os.Stat(o.ConfigFile); errors.Is(err, os.ErrNotExist) {
			return config.Builtin(self)
		}
	}
	return config.Load(o.ConfigFile, self, o.Logger)
}

// parseExternalURL reads --web.external-url; nil leaves it to the door, which knows the port that is bound.
func parseExternalURL(flag string) (*url.URL, error) {
	if flag == "" {
		return nil, nil
	}
	u, err := url.Parse(flag)
	if err != nil {
		return nil, fmt.Errorf("read --web.external-url: %w", err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("read --web.external-url: %q is not a whole http or https URL", flag)
	}
	if u.User != nil {
		return nil, errors.New("read --web.external-url: it is shown to everybody and must not contain a user or password")
	}
	u.Path = strings.TrimRight(u.Path, "/")
	return u, nil
}

// selfAddress is where this process reaches its own listener: a wildcard address is reached at localhost.
func selfAddress(bound string) (string, error) {
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return "", fmt.Errorf("read the bound address %q: %w", bound, err)
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port), nil
}
