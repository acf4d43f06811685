package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
)

// TestBucketCommands looks into a bucket of files, in which a window is missing, one is not whole, and one has a broken index, by
// the command line without a replica, and by the API of one.
func TestBucketCommands(t *testing.T) {
	t.Parallel()
	thanosBinary(t) // before it waits
	const window = 2 * time.Hour
	// Windows of a day are compacted when there are later ones.
	begin := time.Now().Add(-60 * time.Hour).Truncate(24 * time.Hour)
	c := &bucketCluster{}
	c.meshCluster = newCluster(t, clusterOptions{
		names: []string{"a"}, watched: true,
		bucket: func(r *replica) string {
			return "bucket: {type: FILESYSTEM, config: {directory: " + strconv.Quote(filepath.Join(r.cluster.dir, "bucket")) + "}}\n"
		},
	})
	root := filepath.Join(c.dir, "bucket")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	c.config = write(t, c.dir, "bucket.yml", "{type: FILESYSTEM, config: {directory: "+strconv.Quote(root)+"}}\n")
	c.recall(begin, begin.Add(7*window))
	all, err := storedBlocks(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 7 {
		t.Fatalf("there are %d blocks", len(all))
	}
	var names []string
	for i, b := range all {
		names = append(names, c.windowed(root, b.ID, begin.Add(time.Duration(i)*window), i != 5))
	}
	// The second is broken, the fourth gone, half of another there.
	if err := os.Truncate(filepath.Join(root, names[1], "index"), 100); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, names[3])); err != nil {
		t.Fatal(err)
	}
	half := windowID(time.Now().Add(-time.Hour), begin, true).String()
	write(t, root, half+"/index", "half")

	r := c.a()
	look := func(want int, args ...string) string {
		t.Helper()
		stdout, stderr, code := tool(t, r.dir, tocsinBinary, append([]string{"bucket", args[0], "--config.file=tocsin.yml"}, args[1:]...)...)
		if code != want {
			t.Errorf("tocsin bucket %q has ended with code %d:\n%s%s", args, code, stdout, stderr)
		}
		return stdout + stderr
	}
	list := look(0, "ls")
	last := -1
	for i, name := range names {
		at := strings.Index(list, name)
		if (at >= 0) == (i == 3) || i != 3 && at <= last {
			t.Errorf("block %d is not where it belongs:\n%s", i, list)
		}
		last = max(last, at)
	}
	contains(t, "ls", list, half)
	contains(t, "ls", list, "partial")
	contains(t, "ls", list, `replica="a"`)
	contains(t, "inspect", look(0, "inspect", names[5]), "not whole, uploaded by a")
	contains(t, "inspect", look(0, "inspect", names[1]), "index, 100 bytes, meta.json says")
	found := look(1, "verify")
	contains(t, "verify", found, names[0]+"  ok")
	contains(t, "verify", found, names[1]+"  broken   its file index has 100 bytes")
	contains(t, "verify", found, "1 of 7 blocks are broken")
	look(0, "verify", names[0], names[6])
	sums := look(0, "stats")
	for _, want := range []string{"not whole", "bytes per sample", "gap", begin.Add(3*window).UTC().Format("2006-01-02T15:04:05Z") + " - "} {
		contains(t, "stats", sums, want)
	}

	// The replica finds out by itself, when it compacts.
	c.up()
	var view struct {
		States   map[string]int `json:"blocks_by_state"`
		Coverage struct {
			Whole    int
			NotWhole int `json:"not_whole"`
			Missing  int
			Gaps     []struct{ From, To int64 }
		}
		PerSample  float64                          `json:"bytes_per_sample"`
		Quarantine []struct{ Block, Reason string } `json:"quarantine"`
		Windows    []struct {
			Begin int64
			By    string
		}
	}
	eventually(t, 60*time.Second, "the broken block is in quarantine", func() error {
		body, err := quickly("GET", r.url+"/api/tocsin/v1/bucket", "", "")
		if err == nil {
			view.Quarantine = nil
			err = json.Unmarshal([]byte(body), &view)
		}
		switch {
		case err != nil:
			return err
		case len(view.Quarantine) != 1 || view.Quarantine[0].Block != names[1]:
			return fmt.Errorf("the quarantine is %v", view.Quarantine)
		case view.Coverage.Missing != 2:
			return errors.New("its window still counts as covered")
		}
		return nil
	})
	contains(t, "the reason", view.Quarantine[0].Reason, "index")
	if view.Coverage.NotWhole != 1 || view.Coverage.Whole != 4 || len(view.Coverage.Gaps) != 2 || view.Coverage.Gaps[0].From != begin.Add(window).UnixMilli() {
		t.Errorf("the coverage is %+v", view.Coverage)
	}
	if view.PerSample <= 0 || view.States["quarantined"] != 1 || view.States["partial"] != 1 || len(view.Windows) == 0 {
		t.Errorf("the status is %+v", view)
	}
	listed := look(0, "ls")
	contains(t, "ls", listed, "quarantined")
	contains(t, "inspect", look(0, "inspect", names[1]), "tocsin-broken-block")
	page, err := quickly("GET", r.url+"/api/tocsin/v1/status", "", "")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, "what the home page says", page, "1 block of the bucket is broken and left alone: "+names[1])
}

// windowed makes a block one that a replica has uploaded of that window, and tells its new name.
func (c *bucketCluster) windowed(root, id string, begin time.Time, whole bool) string {
	t := c.t
	t.Helper()
	old, err := ulid.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	name := windowID(ulid.Time(old.Time()), begin, whole).String()
	var meta map[string]any
	if err := json.Unmarshal([]byte(readFile(t, root, id+"/meta.json")), &meta); err != nil {
		t.Fatal(err)
	}
	meta["ulid"] = name
	meta["compaction"].(map[string]any)["sources"] = []string{name}
	text, err := json.Marshal(meta)
	if err != nil {
		t.Fatal(err)
	}
	write(t, root, id+"/meta.json", string(text))
	if err := os.Rename(filepath.Join(root, id), filepath.Join(root, name)); err != nil {
		t.Fatal(err)
	}
	return name
}

// windowID is the name that a replica gives a block of a window.
func windowID(at, begin time.Time, whole bool) ulid.ULID {
	id := ulid.MustNewDefault(at)
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(begin.UnixMilli())<<16)
	copy(id[6:12], b[:6])
	id[12] = 0xa4
	if whole {
		id[12] = 0xa5
	}
	h := fnv.New32a()
	h.Write(id[6:13])
	sum := h.Sum32()
	id[13] = byte(sum ^ sum>>8 ^ sum>>16 ^ sum>>24)
	return id
}
