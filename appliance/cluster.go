package appliance

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"

	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// findZone is where this replica stands. Where nobody says, that is worth a warning only once there are other zones.
func (a *Appliance) findZone(cfg *config.Config) string {
	logger := a.component("mesh")
	if cfg.Cluster == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return mesh.Zone(cfg.Replica.Zone, mesh.InstanceData, logger)
}

// newMesh binds the sockets that the other replicas talk to.
func (a *Appliance) newMesh(cfg *config.Config) error {
	mo := a.opts.Mesh
	mo.Logger, mo.Registerer = a.component("mesh"), a.opts.Registry
	zoned := *cfg
	zoned.Replica.Zone = a.zone
	mo.Config = &zoned
	mo.Dir = filepath.Join(a.opts.StoragePath, "mesh")
	mo.Version = a.opts.Version.Version
	_, port, err := net.SplitHostPort(a.bound["web"][0])
	if err != nil {
		return fmt.Errorf("read the bound address %q: %w", a.bound["web"][0], err)
	}
	if mo.HTTPPort, err = strconv.Atoi(port); err != nil {
		return fmt.Errorf("read the bound port %q: %w", port, err)
	}
	if a.mesh, err = mesh.New(mo); err != nil {
		return err
	}
	a.onClose("mesh", a.mesh.Close)
	return nil
}

// cluster answers who the replicas are; without a cluster, that is this one.
func (a *Appliance) cluster() http.Handler {
	if a.mesh != nil {
		return a.mesh.Handler()
	}
	return mesh.Serve("", func() []mesh.Member {
		return []mesh.Member{{
			Name: a.Config().Replica.Name, Alive: true, Self: true,
			Card: mesh.Card{Zone: a.zone, Version: a.opts.Version.Version, Started: a.started, Completeness: 1},
		}}
	})
}
