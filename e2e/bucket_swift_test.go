package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const swiftContainer = "blocks"

// swift is a real OpenStack Swift of one machine, with one container.
type swift struct {
	auth  string // the address where tokens are had
	url   string // of the container
	token string
}

func newSwift(t *testing.T, dir, host string) *swift {
	t.Helper()
	script, err := filepath.Abs("testdata/swiftserver.py")
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(dir, "swift")
	mustTool(t, dir, python, script, folder, host)
	user := "nobody"
	if os.Getuid() == 0 {
		user = "root"
	}
	servers := []*process{start(t, dir, "memcached", "memcached", "-u", user, "-l", host, "-p", "11211", "-U", "0")}
	for _, kind := range []string{"account", "container", "object", "proxy"} {
		servers = append(servers, start(t, dir, "swift-"+kind, python, script, folder, host, kind))
	}
	s := &swift{auth: "http://" + host + ":8080/auth/v1.0"}
	eventually(t, time.Minute, "Swift makes a container", func() error {
		for _, p := range servers {
			p.alive()
		}
		h, err := s.do(http.MethodGet, s.auth, http.Header{"X-Auth-User": {"test:tester"}, "X-Auth-Key": {"testing"}})
		if err != nil {
			return err
		}
		s.token, s.url = h.Get("X-Auth-Token"), h.Get("X-Storage-Url")+"/"+swiftContainer
		_, err = s.do(http.MethodPut, s.url, nil)
		return err
	})
	return s
}

func (s *swift) do(method, address string, header http.Header) (http.Header, error) {
	req, err := http.NewRequest(method, address, nil)
	if err != nil {
		return nil, err
	}
	if header != nil {
		req.Header = header
	}
	req.Header.Set("X-Auth-Token", s.token)
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s", method, address, resp.Status)
	}
	return resp.Header, nil
}

// config is objstore's, as one line of YAML.
func (s *swift) config() string {
	return fmt.Sprintf("{type: SWIFT, config: {auth_version: 1, auth_url: %q, username: 'test:tester', password: testing, container_name: %s}}",
		s.auth, swiftContainer)
}

// TestBucketSwift brings blocks into a real OpenStack Swift, and answers out of it when the local data are lost.
func TestBucketSwift(t *testing.T) {
	t.Parallel()
	var s *swift
	c := &bucketCluster{}
	c.meshCluster = newCluster(t, clusterOptions{
		names: []string{"a"}, watched: true, flags: shortWindows(),
		bucket: func(r *replica) string {
			if s == nil {
				s = newSwift(t, r.cluster.dir, r.cluster.loopback+".201")
			}
			return "bucket: " + s.config() + "\n"
		},
	})
	c.up()
	c.haveData("a")
	first := nextWindow(time.Now())
	last := first.Add(2 * bucketWindow)
	objects := regexp.MustCompile(`"name": ?"([0-9A-Z]{26})/meta\.json"`)
	eventually(t, bucketMost+2*bucketWindow, "windows are in Swift", func() error {
		req, err := http.NewRequest(http.MethodGet, s.url+"?format=json", nil)
		if err != nil {
			return err
		}
		req.Header.Set("X-Auth-Token", s.token)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var b strings.Builder
		if err := resp.Write(&b); err != nil {
			return err
		}
		there := map[time.Time]bool{}
		for _, m := range objects.FindAllStringSubmatch(b.String(), -1) {
			if begin, whole, ok := windowOf(m[1]); ok && whole {
				there[begin] = true
			}
		}
		if !there[first] || !there[first.Add(bucketWindow)] {
			return fmt.Errorf("not %s, only %v: %.300s", first, there, b.String())
		}
		return nil
	})
	before, err := c.a().answer(`{job="meter"}`, first, last, true)
	if err != nil {
		t.Fatal(err)
	}
	config := write(t, c.dir, "swift.yml", s.config()+"\n")
	contains(t, "what stock Thanos says", stockTools(t, c.dir, config, "verify"), "verify task completed")

	c.a().stop()
	c.a().wipe()
	c.up()
	eventually(t, time.Minute, "a answers out of Swift", func() error {
		got, err := c.a().answer(`{job="meter"}`, first, last, false)
		if err == nil && got.samples() == 0 {
			err = errors.New("it has nothing")
		}
		if err == nil {
			err = different("a", got, before)
		}
		return err
	})
}
