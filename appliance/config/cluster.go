package config

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DefaultGossipPort is the port of a peer that is given without one.
const DefaultGossipPort = 9094

const (
	clusterKeyBytes = 32
	// maxClusterKeys bounds the keys that every incoming packet is tried with. A rotation needs two.
	maxClusterKeys = 8
	maxPeers       = 64
	maxClusterName = 64
)

// Cluster says which replicas belong together and how they find each other. A
// replica that stands alone has no such section.
type Cluster struct {
	Name             string   `yaml:"name" reload:"no" doc:"Name of the cluster: 1 to 64 letters, digits, dots, underscores and hyphens. Required. It is in every packet, so that two clusters never become one."`
	Peers            []string `yaml:"peers" reload:"yes" doc:"Where other replicas may be found, see below. One that answers is enough to find the rest, and this replica's own address may be among them, so that all replicas can have the same list."`
	KeyFile          string   `yaml:"key_file" reload:"yes" doc:"File with the cluster key: one key a line, as tocsin cluster keygen prints it. The first is used to send, all are accepted. Lines that begin with # are comments. The content reloads; going from a key to none or back needs a restart. Without it everything is sent in clear, in Alertmanager's own format, so that a stock Alertmanager can join, and replicas do not answer each other over gRPC."`
	Rendezvous       string   `yaml:"rendezvous" default:"none" reload:"no" doc:"bucket: replicas also find each other through the bucket of the bucket section, see below. Wants key_file and a bucket section."`
	AdvertiseAddress string   `yaml:"advertise_address" default:"found out" reload:"no" doc:"Host, or host and port, at which the other replicas reach this one."`
}

// RendezvousBucket is the one value of cluster.rendezvous.
const RendezvousBucket = "bucket"

// RendezvousFolder is where in the bucket the replicas of a cluster meet.
const RendezvousFolder = "rendezvous"

// Keys are secret keys of 32 bytes. However they are printed, nothing is shown.
type Keys [][]byte

// Format prints a placeholder, whatever the verb.
func (Keys) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, secretToken) }

// MarshalJSON gives a placeholder.
func (Keys) MarshalJSON() ([]byte, error) { return json.Marshal(secretToken) }

// MarshalYAML gives a placeholder.
func (Keys) MarshalYAML() (any, error) { return secretToken, nil }

// LogValue gives a placeholder.
func (Keys) LogValue() slog.Value { return slog.StringValue(secretToken) }

// NewClusterKey makes a cluster key: 32 random bytes in base64.
func NewClusterKey() (string, error) {
	key := make([]byte, clusterKeyBytes)
	if _, err := rand.Read(key); err != nil {
		return "", fmt.Errorf("read random bytes: %w", err)
	}
	return base64.StdEncoding.EncodeToString(key), nil
}

// Address is a host with an optional port.
type Address struct {
	Host string     // as given, without brackets
	IP   netip.Addr // the zero Addr if Host is a name
	Port uint16     // 0 if none was given
}

// ParseAddress reads "10.0.0.1", "10.0.0.1:9094", "2001:db8::1",
// "[2001:db8::1]:9094", "host" or "host:9094". Its error repeats of
// what was given nothing but IP addresses.
func ParseAddress(s string) (Address, error) {
	host, port := s, ""
	switch {
	case strings.HasPrefix(s, "["):
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return Address{}, errors.New("a [ without its ]")
		}
		inner, after := s[1:end], s[end+1:]
		if ip, err := netip.ParseAddr(inner); err != nil || !ip.Is6() {
			return Address{}, errors.New("what stands in brackets is not an IPv6 address")
		}
		if after != "" && !strings.HasPrefix(after, ":") {
			return Address{}, errors.New("something other than a port follows the ]")
		}
		if after == ":" {
			return Address{}, errNotPort
		}
		host, port = inner, strings.TrimPrefix(after, ":")
	case strings.Count(s, ":") == 1:
		host, port, _ = strings.Cut(s, ":")
		if port == "" {
			return Address{}, errNotPort
		}
	}
	a := Address{Host: host}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 || strings.HasPrefix(port, "+") {
			return Address{}, errNotPort
		}
		a.Port = uint16(n)
	}
	ip, err := netip.ParseAddr(host)
	if host == s && err == nil && ip.Is6() {
		if err := barePort(s); err != nil {
			return a, err
		}
	}
	if err != nil {
		return a, hostNameProblem(host)
	}
	a.IP = ip.Unmap()
	switch {
	case a.IP.Zone() != "":
		return a, errors.New("an address with a zone means something else on each machine")
	case a.IP.IsUnspecified():
		return a, errors.New("the unspecified address is nobody's")
	case a.IP.IsMulticast(), a.IP == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, errors.New("not the address of one machine")
	}
	return a, nil
}

// barePort refuses an IPv6 address that ends like the default port where what is before it is an address, too: it was
// meant as a port, and the last group of an address that is meant can be written in brackets.
func barePort(s string) error {
	host, ok := strings.CutSuffix(s, ":"+strconv.Itoa(DefaultGossipPort))
	if _, err := netip.ParseAddr(host); !ok || err != nil {
		return nil //nolint:nilerr // Only what is an address twice is mistaken.
	}
	return fmt.Errorf("an IPv6 address with a port is written [%s]:%d, and one without a port that ends so [%s]",
		host, DefaultGossipPort, s)
}

var errNotPort = errors.New("the port is not a number from 1 to 65535")

// hostNameProblem allows what names services in the field: letters, digits,
// hyphens and underscores between dots.
func hostNameProblem(host string) error {
	name := strings.TrimSuffix(host, ".")
	if name == "" {
		return errors.New("the host is missing")
	}
	if len(name) > 253 {
		return errors.New("the host is longer than 253 bytes")
	}
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") ||
			strings.ContainsFunc(label, func(r rune) bool { return r != '-' && !isWordRune(r) }) {
			return errors.New("neither an IP address nor a host name")
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return errors.New("looks like an IP address, and is none")
	}
	return nil
}

func isWordRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_'
}

// Peer is one item of cluster.peers: an address or a name to look up.
type Peer struct {
	Address
	// SRV says that Host is a name whose SRV records give hosts and ports.
	SRV bool
}

// String is the peer in one spelling, whatever it was given in.
func (p Peer) String() string {
	if p.SRV {
		return "dnssrv+" + p.Host
	}
	host, port := strings.ToLower(strings.TrimSuffix(p.Host, ".")), p.Port
	if p.IP.IsValid() {
		host = p.IP.String()
	}
	if port == 0 {
		port = DefaultGossipPort
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(int(port))
}

// ParsePeer reads one item of cluster.peers. Its error does not repeat what was
// given.
func ParsePeer(s string) (Peer, error) {
	if name, ok := strings.CutPrefix(s, "dnssrv+"); ok {
		a, err := ParseAddress(name)
		switch {
		case err != nil:
			return Peer{}, err
		case a.IP.IsValid():
			return Peer{}, errors.New("dnssrv+ wants a name, not an address")
		case a.Port != 0:
			return Peer{}, errors.New("dnssrv+ takes the port from the SRV record")
		}
		return Peer{Address: a, SRV: true}, nil
	}
	name, lookedUp := strings.CutPrefix(s, "dns+")
	a, err := ParseAddress(name)
	if err == nil && lookedUp && a.IP.IsValid() {
		err = errors.New("dns+ wants a name, not an address")
	}
	if err != nil {
		return Peer{}, err
	}
	return Peer{Address: a}, nil
}

const peerForms = "a peer is written as 10.0.0.1, 10.0.0.1:9094, [2001:db8::1]:9094, host, host:9094, dns+host:9094 or dnssrv+_name._tcp.example.org"

func (l *loader) cluster(cfg *Config, doc *section, v *yaml.Node) {
	switch {
	case v == nil:
		return
	case isNull(v):
		doc.add(v, "empty; give a name at least, or leave the section out for a replica that stands alone")
		return
	case v.Kind != yaml.MappingNode:
		doc.add(v, "wrong type: want a mapping")
		return
	}
	c := &Cluster{}
	cfg.Cluster = c
	named := false
	l.strictMapping(doc, v, []string{"name", "peers", "key_file", "rendezvous", "advertise_address"}, func(key string, v *yaml.Node) {
		named = named || key == "name"
		if key == "peers" {
			c.Peers = l.peers(doc, v)
			return
		}
		if v.Kind != yaml.ScalarNode || isNull(v) {
			doc.add(v, "wrong type: want a string")
			return
		}
		switch key {
		case "name":
			if problem := clusterNameProblem(v.Value); problem != "" {
				doc.add(v, "%s (given %s)", problem, clipUnlessKey(v.Value))
			}
			c.Name = v.Value
		case "key_file":
			// It could be as good as left out; but a template whose variable is empty must not end the encryption.
			if strings.TrimSpace(v.Value) == "" {
				doc.add(v, "empty; leave the field out if everything is to be sent in clear")
				return
			}
			c.KeyFile = resolve(doc.dir, v.Value)
			cfg.ClusterKeys = l.clusterKeys(doc, v, c.KeyFile)
		case "rendezvous":
			if v.Value != RendezvousBucket {
				doc.add(v, "want %s, or leave the field out (given %s)", RendezvousBucket, clipUnlessKey(v.Value))
				return
			}
			c.Rendezvous = v.Value
		case "advertise_address":
			if v.Value == "" {
				return
			}
			if _, err := ParseAddress(v.Value); err != nil {
				doc.add(v, "%s; want a host, or a host and a port (given %s)", err.Error(), clipUnlessKey(v.Value))
			}
			c.AdvertiseAddress = v.Value
		}
	})
	if !named {
		doc.add(v, "name is missing")
	}
	l.warnLoopback(c)
}

// rendezvous refuses replicas that meet where there is nothing, or where anybody could send them elsewhere.
func (l *loader) rendezvous(doc *section, at map[string]*yaml.Node) {
	v := child(at[sectionCluster], "rendezvous")
	if v == nil || v.Value != RendezvousBucket {
		return
	}
	if at[sectionBucket] == nil {
		doc.add(v, "there is no bucket section that the replicas could meet in")
	}
	if child(at[sectionCluster], "key_file") == nil {
		doc.add(v, "it wants a cluster key: without one, whoever can write to the bucket could send replicas elsewhere; `tocsin cluster keygen` prints one for key_file")
	}
}

// peers reads cluster.peers. The list may be empty: the others can find us.
func (l *loader) peers(doc *section, v *yaml.Node) []string {
	if isNull(v) {
		return nil
	}
	if v.Kind != yaml.SequenceNode {
		doc.add(v, "wrong type: want a list")
		return nil
	}
	if len(v.Content) > maxPeers {
		doc.add(v, "%d peers; at most %d are taken, and a few that answer are enough to find the rest", len(v.Content), maxPeers)
		return nil
	}
	var peers []string
	lines := map[string]int{}
	for _, item := range v.Content {
		if item.Kind != yaml.ScalarNode || isNull(item) {
			doc.add(item, "wrong type: want a string")
			continue
		}
		p, err := ParsePeer(item.Value)
		if err != nil {
			doc.add(item, "%s; %s (given %s)", err.Error(), peerForms, clipUnlessKey(item.Value))
			continue
		}
		// It would do no harm, but whoever writes one peer twice has left another out.
		if line, again := lines[p.String()]; again {
			doc.add(item, "%s is already listed in line %d", clip(item.Value), line)
			continue
		}
		lines[p.String()] = item.Line
		peers = append(peers, item.Value)
	}
	return peers
}

// warnLoopback does not refuse: a tunnel may end at a loopback address.
func (l *loader) warnLoopback(c *Cluster) {
	own, err := ParseAddress(c.AdvertiseAddress)
	if err != nil || !isLoopback(own) {
		return
	}
	for _, s := range c.Peers {
		if p, err := ParsePeer(s); err == nil && (p.SRV || !isLoopback(p.Address)) {
			l.logger.Warn("cluster.advertise_address is a loopback address, which a peer on another machine cannot reach",
				"advertise_address", c.AdvertiseAddress, "peer", s)
			return
		}
	}
}

func isLoopback(a Address) bool {
	return a.IP.IsLoopback() || strings.EqualFold(strings.TrimSuffix(a.Host, "."), "localhost")
}

func clusterNameProblem(s string) string {
	switch {
	case s == "":
		return "may not be empty"
	case len(s) > maxClusterName:
		return fmt.Sprintf("longer than %d characters", maxClusterName)
	case strings.ContainsFunc(s, func(r rune) bool { return r != '.' && r != '-' && !isWordRune(r) }):
		return "want letters, digits, dots, underscores and hyphens only"
	case s == ".", s == "..":
		return "names a folder"
	}
	return ""
}

// clusterKeys reads the key file. No finding shows anything of its content.
func (l *loader) clusterKeys(doc *section, v *yaml.Node, path string) Keys {
	if isClusterKey(v.Value) {
		doc.add(v, "this is a key itself; write it into a file and give the path of that file")
		return nil
	}
	b, err := readFile(path)
	if err != nil {
		doc.add(v, "read file %s: %s", clip(v.Value), err.Error())
		return nil
	}
	shown := v.Value
	if !filepath.IsAbs(shown) {
		shown = filepath.Join(filepath.Dir(l.path), shown)
	}
	bad := func(line int, problem string) {
		l.found = append(l.found, Finding{File: shown, Line: line, Problem: problem})
	}
	var keys Keys
	var lines []int
	found := len(l.found)
	for i, line := range bytes.Split(b, []byte("\n")) {
		if len(l.found)-found >= maxFindings {
			bad(i+1, "there may be more: the search for problems was ended at its limit")
			return nil
		}
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, ok := decodeClusterKey(string(line))
		if !ok {
			bad(i+1, "not a key: want 32 bytes in base64, as `tocsin cluster keygen` prints them")
			continue
		}
		if bytes.Count(key, key[:1]) == len(key) {
			bad(i+1, "not a secret: all bytes of this key are the same")
			continue
		}
		if at := slices.IndexFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) }); at >= 0 {
			bad(i+1, fmt.Sprintf("the same key as in line %d", lines[at]))
			continue
		}
		keys, lines = append(keys, key), append(lines, i+1)
	}
	switch {
	case len(l.found) > found:
		return nil
	case len(keys) == 0:
		bad(0, "holds no key; `tocsin cluster keygen` prints one, or leave cluster.key_file out to send everything in clear")
		return nil
	case len(keys) > maxClusterKeys:
		bad(lines[maxClusterKeys], fmt.Sprintf("more than %d keys; take out those that no replica sends with any more", maxClusterKeys))
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o004 != 0 {
		l.logger.Warn("everybody on this machine can read the cluster key; take the right to read it from others",
			"file", path, "mode", info.Mode().Perm().String())
	}
	return keys
}

func decodeClusterKey(s string) ([]byte, bool) {
	key, err := base64.StdEncoding.Strict().DecodeString(s)
	return key, err == nil && len(key) == clusterKeyBytes
}

func isClusterKey(s string) bool {
	_, ok := decodeClusterKey(strings.TrimSpace(s))
	return ok
}

// clipUnlessKey shows a value that does not look like a key in the wrong place.
func clipUnlessKey(s string) string {
	if isClusterKey(s) {
		return secretToken
	}
	return clip(s)
}

// immutableCluster names the fields of the cluster section that differ although
// they can only change with a restart.
func immutableCluster(old, next *Config) []string {
	if old.Cluster == nil || next.Cluster == nil {
		if (old.Cluster == nil) != (next.Cluster == nil) {
			return []string{"cluster"}
		}
		return nil
	}
	var fields []string
	if old.Cluster.Name != next.Cluster.Name {
		fields = append(fields, "cluster.name")
	}
	if old.Cluster.AdvertiseAddress != next.Cluster.AdvertiseAddress {
		fields = append(fields, "cluster.advertise_address")
	}
	if old.Cluster.Rendezvous != next.Cluster.Rendezvous {
		fields = append(fields, "cluster.rendezvous")
	}
	// A mesh with a key and one without speak different formats.
	if (len(old.ClusterKeys) == 0) != (len(next.ClusterKeys) == 0) {
		fields = append(fields, "cluster.key_file")
	}
	return fields
}
