package mesh

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/prometheus/tsdb/fileutil"
)

const (
	// rememberFor is how long a peer that was not seen again is tried.
	rememberFor = 30 * 24 * time.Hour
	// maxRemembered bounds the peers that are remembered: the latest.
	maxRemembered = 64
	// maxPeersFile bounds the file in bytes.
	maxPeersFile = 1 << 20
	// seenEvery is how often the time in the file is brought up to date while nothing changes.
	seenEvery = time.Hour
)

// remembered is a peer that was seen before.
type remembered struct {
	Name    string    `json:"name"`
	Address string    `json:"address"` // ip:port
	Seen    time.Time `json:"last_seen"`
}

// memory keeps the peers that were seen in a file, so that replicas that restart all at once find each other also if
// the configured peers have changed or the DNS is dead. One goroutine uses it.
type memory struct {
	path  string
	peers []remembered // The latest first.
}

type peersFile struct {
	Peers []remembered `json:"peers"`
}

// openMemory reads the peers of an earlier run. An error leaves an empty memory that can be used: what is in the file
// helps to start, and is not needed to.
func openMemory(dir string, now time.Time) (*memory, error) {
	m := &memory{path: filepath.Join(dir, "peers.json")}
	f, err := os.Open(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return m, fmt.Errorf("read the peers seen before: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPeersFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return m, fmt.Errorf("read the peers seen before: %w", err)
	}
	if len(b) > maxPeersFile {
		return m, fmt.Errorf("read the peers seen before: %s is larger than %d bytes", m.path, maxPeersFile)
	}
	var file peersFile
	if err := json.Unmarshal(b, &file); err != nil {
		return m, fmt.Errorf("read the peers seen before in %s: %w", m.path, err)
	}
	for _, p := range file.Peers {
		a, err := netip.ParseAddrPort(p.Address)
		if err != nil || a.Port() == 0 || p.Name == "" || len(p.Name) > maxNameBytes {
			continue
		}
		m.add(p)
	}
	m.tidy(now)
	return m, nil
}

// add notes a peer; it forgets the earlier address of that name, and the earlier name at that address.
func (m *memory) add(p remembered) {
	m.peers = slices.DeleteFunc(m.peers, func(old remembered) bool {
		return (old.Name == p.Name || old.Address == p.Address) && !old.Seen.After(p.Seen)
	})
	if slices.ContainsFunc(m.peers, func(old remembered) bool { return old.Name == p.Name || old.Address == p.Address }) {
		return // Something later is known.
	}
	m.peers = append(m.peers, p)
}

func (m *memory) tidy(now time.Time) {
	m.peers = slices.DeleteFunc(m.peers, func(p remembered) bool { return now.Sub(p.Seen) > rememberFor })
	slices.SortFunc(m.peers, func(a, b remembered) int {
		if c := b.Seen.Compare(a.Seen); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	if len(m.peers) > maxRemembered {
		m.peers = m.peers[:maxRemembered]
	}
}

// update notes who is alive now and writes the file if that changed who is in it, or if it is old.
func (m *memory) update(members []Member, now time.Time) error {
	write := false
	for _, member := range members {
		if member.Self || !member.Alive || member.Address == "" {
			continue
		}
		i := slices.IndexFunc(m.peers, func(p remembered) bool {
			return p.Name == member.Name && p.Address == member.Address
		})
		if i >= 0 && now.Sub(m.peers[i].Seen) < seenEvery {
			continue
		}
		m.add(remembered{Name: member.Name, Address: member.Address, Seen: now.UTC().Truncate(time.Second)})
		write = true
	}
	if !write {
		return nil
	}
	m.tidy(now)
	return m.save()
}

// save replaces the file in one step.
func (m *memory) save() (err error) {
	b, err := json.MarshalIndent(peersFile{Peers: m.peers}, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the peers seen: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(m.path), filepath.Base(m.path)+".tmp*")
	if err != nil {
		return fmt.Errorf("write the peers seen: %w", err)
	}
	_, err = tmp.Write(append(b, '\n'))
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return errors.Join(fmt.Errorf("write the peers seen to %s: %w", tmp.Name(), err), os.Remove(tmp.Name()))
	}
	// It syncs the directory too.
	if err := fileutil.Rename(tmp.Name(), m.path); err != nil {
		return fmt.Errorf("put the peers seen in place: %w", err)
	}
	return nil
}
