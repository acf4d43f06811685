package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// thanosBinary is a stock Thanos at the version whose libraries are embedded (environment variable THANOS).
func thanosBinary(t *testing.T) string {
	t.Helper()
	return peerBinary(t, "THANOS", "thanos")
}

// peerBinary is a program that the Makefile builds; the environment variable may name another one.
func peerBinary(t *testing.T, variable, name string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = "../bin/peers/" + name
	}
	abs, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(abs)
	}
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing, run `make peers`: %v", name, err)
		}
		t.Skipf("%s is missing, run `make peers`: %v", name, err)
	}
	return abs
}

// thanosQuery is a stock Thanos Query on the cluster's replicas, with a reader's certificate.
type thanosQuery struct {
	*process
	url string
}

func (c *meshCluster) thanosQuery(certificate string) *thanosQuery {
	c.t.Helper()
	host := fmt.Sprintf("%s.%d", c.loopback, 101)
	args := []string{
		"query", "--http-address=" + host + ":10902", "--grpc-address=" + host + ":10901",
		"--grpc-client-tls-secure", "--grpc-client-tls-ca=" + filepath.Join(certificate, "ca.pem"),
		"--grpc-client-tls-cert=" + filepath.Join(certificate, "cert.pem"),
		"--grpc-client-tls-key=" + filepath.Join(certificate, "key.pem"), "--grpc-client-server-name=tocsin",
		"--query.replica-label=replica", "--query.replica-label=zone", "--endpoint.info-timeout=2s",
	}
	for _, name := range c.options.names {
		args = append(args, "--endpoint="+c.replicas[name].host+":10901")
	}
	q := &thanosQuery{process: start(c.t, c.dir, "thanos", thanosBinary(c.t), args...), url: "http://" + host + ":10902"}
	eventually(c.t, 30*time.Second, "Thanos Query is ready", func() error {
		q.alive()
		_, err := quickly(http.MethodGet, q.url+"/-/ready", "", "")
		return err
	})
	return q
}

// thanosSeries is one of an answer to an instant query.
type thanosSeries struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"`
}

// query is an instant query. What a Thanos could not get it says in warnings, which are errors here.
func (q *thanosQuery) query(expr string, dedup bool) ([]thanosSeries, error) {
	var answer struct {
		Data struct {
			Result []thanosSeries `json:"result"`
		} `json:"data"`
		Warnings []string `json:"warnings"`
	}
	v := url.Values{"query": {expr}, "dedup": {fmt.Sprint(dedup)}}
	body, err := quickly(http.MethodGet, q.url+"/api/v1/query?"+v.Encode(), "", "")
	if err == nil {
		err = json.Unmarshal([]byte(body), &answer)
	}
	if err == nil && len(answer.Warnings) > 0 {
		err = fmt.Errorf("warnings: %q", answer.Warnings)
	}
	return answer.Data.Result, err
}

// values are those of a label.
func (q *thanosQuery) values(label string) ([]string, error) {
	var answer struct {
		Data []string `json:"data"`
	}
	body, err := quickly(http.MethodGet, q.url+"/api/v1/label/"+label+"/values", "", "")
	if err == nil {
		err = json.Unmarshal([]byte(body), &answer)
	}
	return answer.Data, err
}

// has is a check that without deduplication a query answers once for each of the replicas, with its external labels,
// and with it once.
func (q *thanosQuery) has(expr string, replicas ...string) func() error {
	return func() error {
		all, err := q.query(expr, false)
		if err != nil {
			return err
		}
		var got []string
		for _, s := range all {
			if s.Metric["site"] != "e2e" || s.Metric["zone"] != "zone-"+s.Metric["replica"] || s.Value[1] != "1" {
				return fmt.Errorf("a series %v = %v", s.Metric, s.Value)
			}
			got = append(got, s.Metric["replica"])
		}
		slices.Sort(got)
		if !slices.Equal(got, replicas) {
			return fmt.Errorf("without deduplication %s is there of %q, not %q", expr, got, replicas)
		}
		one, err := q.query(expr, true)
		if err != nil {
			return err
		}
		if len(one) != 1 || one[0].Metric["replica"] != "" || one[0].Metric["zone"] != "" || one[0].Metric["instance"] != "lamps" {
			return fmt.Errorf("with deduplication: %v", one)
		}
		return nil
	}
}

// TestStockThanosQuery attaches a stock Thanos Query to three replicas, with a certificate made for it.
func TestStockThanosQuery(t *testing.T) {
	t.Parallel()
	thanosBinary(t) // before it waits
	c := newCluster(t, clusterOptions{})
	c.up()
	certificate := filepath.Join(c.dir, "reader")
	write(t, c.dir, "cluster.key", c.key+"\n")
	certify := func(name, cluster, dir string) string {
		return mustTool(t, c.dir, tocsinBinary, "cluster", "certificate", "--key-file=cluster.key", "--cluster="+cluster,
			"--name="+name, "--out="+dir)
	}
	contains(t, "what is printed", certify("thanos", "e2e", certificate), "--grpc-client-server-name=tocsin")
	q := c.thanosQuery(certificate)
	const up = `up{job="lamps"}`
	eventually(t, 60*time.Second, "all replicas are there", q.has(up, "a", "b", "c"))

	for label, want := range map[string][]string{
		"replica": {"a", "b", "c"}, "zone": {"zone-a", "zone-b", "zone-c"}, "site": {"e2e"}, "job": {"lamps"},
	} {
		got, err := q.values(label)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("values of %s: %q, not %q: %v", label, got, want, err)
		}
	}
	// One replica is told from the others by its labels, and asked alone.
	one, err := q.query(`up{job="lamps",replica="b"}`, false)
	if err != nil || len(one) != 1 || one[0].Metric["zone"] != "zone-b" {
		t.Errorf("the series of b: %v, %v", one, err)
	}
	// What Thanos Query computes over a range is what a replica does.
	c.light("1")
	eventually(t, 30*time.Second, "the lamp is lit at all", func() error {
		got, err := q.query(`count(e2e_lamp{n="1"} == 1)`, false)
		if err != nil {
			return err
		}
		if len(got) != 1 || got[0].Value[1] != "3" {
			return fmt.Errorf("%v", got)
		}
		return nil
	})

	// The rest answers when one has gone, and all do when it is back.
	c.b().stop()
	eventually(t, 90*time.Second, "the rest answers", q.has(`e2e_lamp{n="1"}`, "a", "c"))
	c.b().start().ready()
	eventually(t, 90*time.Second, "all answer again", q.has(`e2e_lamp{n="1"}`, "a", "b", "c"))
	for _, name := range c.options.names {
		denied, err := c.replicas[name].total("rpc_denied")
		if err != nil || denied != 0 {
			t.Errorf("%s has denied a stock Thanos Query %v calls: %v", name, denied, err)
		}
	}

	// A certificate for another cluster is none.
	stranger := filepath.Join(c.dir, "stranger")
	certify("thanos", "other", stranger)
	q.signal(os.Interrupt)
	q.wait(time.Minute)
	q = c.thanosQuery(stranger)
	eventually(t, 30*time.Second, "a stranger is refused", func() error {
		if !strings.Contains(q.output(), "x509: ") {
			return errors.New("nothing is logged of it")
		}
		return nil
	})
	if got, err := q.query(up, false); len(got) > 0 {
		t.Errorf("a stranger got %v, %v", got, err)
	}
}
