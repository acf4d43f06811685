package appliance

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/tocsin-io/tocsin/appliance/bucket"
	"github.com/tocsin-io/tocsin/appliance/config"
	"github.com/tocsin-io/tocsin/web"
)

// backlogWorth is how many windows may wait for the bucket before that is worth a sentence: the newest waits for its turn, and one
// may be on its way.
const backlogWorth = 3

// brokenNamed is how many broken blocks a sentence names.
const brokenNamed = 3

// newBucket wires this replica's share in the object storage.
func (a *Appliance) newBucket(cfg *config.Config) error {
	bo := bucket.Options{
		Logger: a.component("bucket"), Registerer: a.opts.Registry,
		Dir: filepath.Join(a.opts.StoragePath, "bucket-work"), Config: cfg, Replica: cfg.Replica.Name,
		External: a.externalLabels, Store: a.store, Window: a.store.Window(),
	}
	if a.mesh != nil {
		bo.Replicas = a.replicas
		if a.mesh.Keyed() {
			bo.Gaps, bo.Mesh = a.ledger, a.mesh
		}
	}
	var err error
	if a.bucket, err = bucket.New(bo); err != nil {
		return err
	}
	a.onClose("bucket", a.bucket.Close)
	a.store.Hold(a.bucket.Settled)
	return nil
}

// replicas are those that live, this one among them. A stock Alertmanager in the mesh is none.
func (a *Appliance) replicas() []string {
	var names []string
	for _, m := range a.mesh.Members() {
		if m.Self || m.Alive && m.Card.Cluster != "" {
			names = append(names, m.Name)
		}
	}
	return names
}

// bucketStatus has a sentence for what does not get into the bucket.
func (a *Appliance) bucketStatus(s *web.Status) {
	if a.bucket == nil {
		return
	}
	s.Bucket = true
	st := a.bucket.Status()
	if st.Problem != "" {
		text := "The bucket cannot be listed: " + st.Problem
		if !st.Looked.IsZero() {
			text += fmt.Sprintf(" It was last listed %s ago.", time.Since(st.Looked).Round(time.Second))
		}
		s.Problem("/cluster", text+" Local data are kept until it is back.")
	}
	if st.Upload.Backlog >= backlogWorth {
		s.Problem("/cluster", fmt.Sprintf("%d windows of data wait to get into the bucket.", st.Upload.Backlog))
	}
	if n := len(st.Quarantine); n > 0 {
		var which []string
		for _, q := range st.Quarantine[:min(n, brokenNamed)] {
			which = append(which, q.Block.String())
		}
		if n > brokenNamed {
			which = append(which, "...")
		}
		text := "1 block of the bucket is broken and left alone: "
		if n > 1 {
			text = fmt.Sprintf("%d blocks of the bucket are broken and left alone: ", n)
		}
		s.Problem("/cluster", text+strings.Join(which, ", ")+"; see `tocsin bucket ls`.")
	}
}

// bucketAPI answers what is in the bucket.
func (a *Appliance) bucketAPI() http.Handler {
	if a.bucket == nil {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"status":"error","errorType":"not_found","error":"this replica has no bucket: the configuration has no section bucket"}`+"\n") // The client may be gone.
		})
	}
	return a.bucket.Handler()
}
