package appliance

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"github.com/tocsin-io/tocsin/appliance/bucket"
	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/appliance/mesh"
	"github.com/tocsin-io/tocsin/web"
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
	a.mesh.SetConfig(a.cardConfig())
	if cfg.Cluster.Rendezvous == "" {
		return nil
	}
	if a.rendezvous, err = bucket.NewRendezvous(bucket.RendezvousOptions{
		Logger: a.component("rendezvous"), Registerer: a.opts.Registry, Bucket: a.objects,
		Config: cfg, Address: a.mesh.Address(), Found: a.mesh.SetFound, Others: a.others,
	}); err != nil {
		return err
	}
	a.mesh.OnChange(a.rendezvous.Changed)
	return nil
}

// others are the names of the other members that live.
func (a *Appliance) others() []string {
	var names []string
	for _, m := range a.mesh.Members() {
		if m.Alive && !m.Self {
			names = append(names, m.Name)
		}
	}
	return names
}

// cluster answers who the replicas are; without a cluster, that is this one.
func (a *Appliance) cluster() http.Handler {
	if a.mesh != nil {
		return a.mesh.Handler()
	}
	return mesh.Serve("", func() []mesh.Member {
		return []mesh.Member{{
			Name: a.Config().Replica.Name, Alive: true, Self: true,
			Card: mesh.Card{Zone: a.zone, Version: a.opts.Version.Version, Started: a.started, Completeness: 1, Config: a.cardConfig()},
		}}
	})
}

// meshEvents answers what happened among the replicas; without a cluster, that is nothing.
func (a *Appliance) meshEvents() http.Handler {
	if a.mesh != nil {
		return a.mesh.Events()
	}
	return mesh.NoEvents()
}

var calledZone = regexp.MustCompile(`(?i)^zone\b`)

// zoneWords says that it is a zone without saying it twice.
func zoneWords(zone string) string {
	if calledZone.MatchString(zone) {
		return zone
	}
	return "zone " + zone
}

// clusterStatus is for the page: who is there, and a sentence for what is wrong.
func (a *Appliance) clusterStatus(s *web.Status) {
	if a.mesh == nil {
		return
	}
	s.Cluster.Name = a.Config().Cluster.Name
	for _, m := range a.mesh.Members() {
		ms := web.MemberStatus{
			Name: m.Name, Zone: m.Card.Zone, Version: m.Card.Version, Self: m.Self, Since: m.Since,
			RoundTrip: m.RTT, ClockSkew: m.ClockSkew, State: "alive",
		}
		if m.Card.HTTP != "" && a.external.Scheme == "http" {
			ms.URL = "http://" + m.Card.HTTP + "/"
		}
		what := "died, or cannot be reached,"
		if m.Left {
			what = "was stopped"
		}
		if !m.Alive {
			ms.State = "gone"
			if m.Left {
				ms.State = "stopped"
			}
			s.Problem("/cluster", fmt.Sprintf("Replica %s in %s %s at %s.",
				m.Name, zoneWords(m.Card.Zone), what, m.Since.UTC().Format("15:04:05 UTC")))
		}
		if skew := m.ClockSkew.Abs(); m.Alive && skew > mesh.MaxSkew {
			s.Problem("/cluster", fmt.Sprintf("The clock of replica %s is %s off this one's: look at its time synchronisation.",
				m.Name, skew.Round(10*time.Millisecond)))
		}
		if m.Alive && m.Card.Drain.Held {
			s.Problem("/cluster", fmt.Sprintf("Replica %s in %s is drained: it is about to be stopped, and no other one may be meanwhile.", m.Name, zoneWords(m.Card.Zone)))
		}
		s.Cluster.Members = append(s.Cluster.Members, ms)
	}
	if len(a.mesh.Peers()) > 1 {
		return
	}
	if a.rendezvous != nil {
		if st := a.rendezvous.Status(); st.Problem != "" {
			s.Problem("/cluster", "Other replicas cannot be looked for in the bucket: "+st.Problem)
		}
	}
	if a.expectsOthers() {
		s.Problem("/cluster", "No other replica is in the mesh: this one works alone, and what it sends may be sent by others too.")
	}
}

// expectsOthers tells whether there should be other replicas, as far as the configuration or the bucket say.
func (a *Appliance) expectsOthers() bool {
	return len(a.Config().Cluster.Peers) > 1 || a.rendezvous != nil && a.rendezvous.Status().Others > 0
}
