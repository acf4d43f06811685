package install

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// nowhere is what every name but the proxy's stands for: who asks it has gone around the proxy.
const nowhere = "10.250.0.99"

// TestBehindProxy boots a machine that reaches nothing but the egress proxy, name service and the metadata service. Nothing may
// try to go around.
func TestBehindProxy(t *testing.T) {
	w := newWorld(t)
	s := newSite(w)
	mirror := s.newMirror("bookworm", "bookworm-updates")
	p := newProxy(map[string]http.Handler{
		"apt.example.org":    http.StripPrefix("/tocsin/", http.FileServer(http.Dir(s.repo.dir))),
		"mirror.example.org": http.StripPrefix("/debian/", http.FileServer(http.Dir(mirror))),
		"s3.example.org":     s.gateway(),
		"hooks.example.org":  http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }),
	})
	w.serve(3128, p)
	w.names(map[string]string{"proxy.example.org.": coreAddress})
	s.put("config/tocsin.yml", "prometheus: prometheus.yml\nalertmanager: alertmanager.yml\n")
	s.put("config/prometheus.yml", "global: {scrape_interval: 5s, evaluation_interval: 1s}\nrule_files: [rules.yml]\n")
	s.put("config/rules.yml", "groups: [{name: g, rules: [{alert: Always, expr: vector(1)}]}]\n")
	s.put("config/alertmanager.yml", `global: {http_config: {proxy_from_environment: true}}
route: {receiver: hook, group_wait: 1s}
receivers: [{name: hook, webhook_configs: [{url: "http://hooks.example.org/alert"}]}]
`)
	around := w.countAround()

	n := w.node("a")
	n.route()
	n.write("/etc/resolv.conf", "nameserver "+coreAddress+"\n", 0o644)
	// The mirror of the test is signed with the key of the test.
	n.write("/usr/share/keyrings/debian-archive-keyring.gpg", w.must("gpg", "--homedir", s.repo.home, "--export"), 0o644)
	s.place(n, s.document("behind-proxy.yaml",
		"https://apt.example.org/tocsin", "http://apt.example.org/tocsin",
		"endpoint: s3.eu-central-1.amazonaws.com", "endpoint: s3.example.org, insecure: true"), "i-a", "zone-a")
	f := &fleet{t: t, w: w, machines: []*machine{{node: n, volume: w.volume("a", 256)}}}

	begin := time.Now()
	f.machines[0].start()
	eventually(t, bootMost, "the machine is a replica", f.whole)
	t.Logf("from the start of the machine to a replica that is ready: %s", time.Since(begin).Round(time.Second/10))
	f.machines[0].cloudInit()
	n.booted(time.Minute)
	eventually(t, time.Minute, "all that is outside has been asked through the proxy", func() error {
		var missing []string
		for _, host := range []string{"GET mirror.example.org", "GET apt.example.org", "GET s3.example.org", "PUT s3.example.org", "POST hooks.example.org"} {
			if !p.asked(host) {
				missing = append(missing, host)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("not yet: %q", missing)
		}
		return nil
	})
	if got := n.run("sh", "-c", "apt-get update 2>&1"); strings.Contains(got, "Err:") || strings.Contains(got, "W:") {
		t.Errorf("apt is not content: %s", got)
	}
	if strangers := p.strangers(); len(strangers) > 0 {
		t.Errorf("the proxy was asked for %q", strangers)
	}
	if n := around(); n != 0 {
		t.Errorf("%d packets tried to go around the proxy", n)
	}
	// The count counts.
	if out, err := n.try("curl", "--noproxy", "*", "--max-time", "1", "http://apt.example.org/"); err == nil {
		t.Errorf("there is a way around the proxy: %s", out)
	}
	if around() == 0 {
		t.Error("a packet that went around was not counted")
	}
}

// proxy is an egress proxy that knows a few hosts, and notes who else is asked for.
type proxy struct {
	hosts map[string]http.Handler
	mu    sync.Mutex
	seen  map[string]bool // METHOD host
	odd   []string
}

func newProxy(hosts map[string]http.Handler) *proxy {
	return &proxy{hosts: hosts, seen: map[string]bool{}}
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := p.hosts[r.URL.Hostname()]
	p.mu.Lock()
	if h == nil || !r.URL.IsAbs() {
		p.odd = append(p.odd, r.Method+" "+r.Host)
	} else {
		p.seen[r.Method+" "+r.URL.Hostname()] = true
	}
	p.mu.Unlock()
	if h == nil {
		http.Error(w, "not allowed", http.StatusForbidden)
		return
	}
	h.ServeHTTP(w, r)
}

func (p *proxy) asked(what string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen[what]
}

func (p *proxy) strangers() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.odd)
}

// gateway leads to the object storage.
func (s *site) gateway() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: s.s3})
			r.Out.Host = r.In.Host // It is signed.
		},
		Transport: s.w.client.Transport,
	}
}

// newMirror makes a mirror of Debian that has nothing.
func (s *site) newMirror(suites ...string) string {
	s.w.t.Helper()
	dir := filepath.Join(s.w.dir, "mirror")
	for _, suite := range suites {
		folder := filepath.Join(dir, "dists", suite)
		packages := filepath.Join(folder, "main", "binary-amd64")
		if err := os.MkdirAll(packages, 0o755); err != nil {
			s.w.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(packages, "Packages"), nil, 0o644); err != nil {
			s.w.t.Fatal(err)
		}
		s.w.must("sh", "-ec", `cd "$1"
apt-ftparchive -o APT::FTPArchive::Release::Suite="$2" -o APT::FTPArchive::Release::Codename="$2" \
	-o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures=amd64 release . > ../release
mv ../release Release
gpg --quiet --homedir "$3" --batch --yes --clearsign --output InRelease Release`, "sh", folder, suite, s.repo.home)
	}
	return dir
}

// names is a name server in the core: it knows these names, and for all others sends people nowhere.
func (w *world) names(known map[string]string) {
	w.t.Helper()
	h := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			ip := known[strings.ToLower(q.Question[0].Name)]
			if ip == "" {
				ip = nowhere
			}
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.ParseIP(ip),
			}}
		}
		_ = rw.WriteMsg(m) // Who has gone asks again.
	})
	var conn net.PacketConn
	if err := w.inCore(func() (err error) {
		conn, err = (&net.ListenConfig{}).ListenPacket(context.Background(), "udp", coreAddress+":53")
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	s, done := &dns.Server{PacketConn: conn, Handler: h}, make(chan struct{})
	go func() {
		defer close(done)
		_ = s.ActivateAndServe() // It says only that it was closed.
	}()
	w.t.Cleanup(func() { conn.Close(); <-done })
}

// countAround drops what machines send elsewhere than to the proxy, name service and the metadata service, and returns how many
// packets that were. Answers to the test's own requests are not among them, nor what machines say to each other.
func (w *world) countAround() func() int {
	w.t.Helper()
	w.must("ip", "-n", w.core(), "addr", "add", nowhere+"/32", "dev", "br0")
	w.must("ip", "netns", "exec", w.core(), "nft", `table inet around {
		counter strayed {}
		chain in {
			type filter hook prerouting priority 0;
			iifname != "br0" accept
			ip daddr `+coreAddress+` tcp dport 3128 accept
			ip daddr `+coreAddress+` udp dport 53 accept
			ip daddr `+metadataAddress+` tcp dport 80 accept
			ip daddr `+coreAddress+` tcp sport 9090 accept
			icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, mld-listener-report, mld2-listener-report } accept
			ip protocol igmp accept
			counter name strayed drop
		}
	}`)
	return func() int {
		w.t.Helper()
		out := w.must("ip", "netns", "exec", w.core(), "nft", "--json", "list", "counter", "inet", "around", "strayed")
		var v struct {
			Nftables []struct{ Counter *struct{ Packets int } }
		}
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			w.t.Fatal(err)
		}
		for _, o := range v.Nftables {
			if o.Counter != nil {
				return o.Counter.Packets
			}
		}
		w.t.Fatalf("there is no counter: %s", out)
		return 0
	}
}
