package mesh

import (
	"encoding/json"
	"net/http"
	"time"
)

// clusterAnswer is what the cluster API answers.
type clusterAnswer struct {
	Name    string         `json:"name"`
	Members []memberAnswer `json:"members"`
}

type memberAnswer struct {
	Name         string    `json:"name"`
	Zone         string    `json:"zone"`
	Address      string    `json:"address"`
	HTTP         string    `json:"http_address"`
	GRPC         string    `json:"grpc_address"`
	Version      string    `json:"version"`
	Started      time.Time `json:"started,omitzero"`
	Completeness float64   `json:"completeness"`
	Alive        bool      `json:"alive"`
	Left         bool      `json:"left"`
	Self         bool      `json:"self"`
	RTT          float64   `json:"rtt_seconds"`
	ClockSkew    float64   `json:"clock_skew_seconds"`
	LastContact  time.Time `json:"last_contact,omitzero"`
	// Drained says that it may be stopped, and is about to be.
	Drained bool `json:"drained"`
	// Config is absent where the configuration does not come from the bucket.
	Config *configAnswer `json:"config,omitempty"`
}

// configAnswer has the beginnings of two hashes: of what is in force, and of what is in the bucket.
type configAnswer struct {
	Hash  string `json:"hash"`
	Seen  string `json:"seen_hash"`
	State string `json:"state"`
}

// Handler answers a GET with the cluster's name and its members, those that left or died in the last day too.
func (m *Mesh) Handler() http.Handler { return Serve(m.cluster, m.Members) }

// Serve answers as Handler does, for a replica that has no mesh.
func Serve(name string, members func() []Member) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET is answered here", http.StatusMethodNotAllowed)
			return
		}
		a := clusterAnswer{Name: name, Members: []memberAnswer{}}
		for _, e := range members() {
			a.Members = append(a.Members, memberAnswer{
				Name: e.Name, Zone: e.Card.Zone, Address: e.Address, HTTP: e.Card.HTTP, GRPC: e.Card.GRPC,
				Version: e.Card.Version, Started: e.Card.Started, Completeness: e.Card.Completeness,
				Alive: e.Alive, Left: e.Left, Self: e.Self,
				RTT: e.RTT.Seconds(), ClockSkew: e.ClockSkew.Seconds(), LastContact: e.LastContact.UTC(),
				Drained: e.Alive && e.Card.Drain.Held,
			})
			if c := e.Card.Config; c != (CardConfig{}) {
				a.Members[len(a.Members)-1].Config = &configAnswer{Hash: c.Hash, Seen: c.Seen, State: c.State}
			}
		}
		w.Header().Set("Content-Type", "application/json")
		// The client may be gone.
		_ = json.NewEncoder(w).Encode(a)
	})
}
