package bucket

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"github.com/thanos-io/objstore"

	"github.com/tocsin-io/tocsin/appliance/mesh"
)

// place is a bucket that is a folder, and what a replica keeps of it.
type place struct {
	*files
	bkt       objstore.Bucket // What the source reads: files, or another one.
	root, dir string
	// bad is what Check finds in a tocsin.yml.
	bad string
	// fails is what a part cannot be applied of, and inForce what is in force.
	fails, inForce string
	applied        int
	members        func() []mesh.Member
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{root: filepath.Join(t.TempDir(), "bucket"), dir: filepath.Join(t.TempDir(), "config"), bad: "bad"}
	var err error
	p.files, err = openFiles(p.root)
	require.NoError(t, err)
	p.bkt = p.files
	return p
}

func (p *place) source(t *testing.T) *Source {
	t.Helper()
	var s *Source
	s, err := NewSource(SourceOptions{
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(), Bucket: p.bkt,
		Prefix: "config/", Poll: time.Minute, Dir: p.dir,
		Check: func(dir string) error {
			b, err := os.ReadFile(filepath.Join(dir, "tocsin.yml"))
			if err == nil && strings.Contains(string(b), p.bad) {
				err = errors.New("tocsin.yml: it is bad")
			}
			return err
		},
		Apply: func(context.Context) (bool, error) {
			p.applied++
			dir, ok := s.Live()
			if !ok {
				p.inForce = "nothing"
				return false, nil
			}
			b, err := os.ReadFile(filepath.Join(dir, "tocsin.yml"))
			require.NoError(t, err)
			if p.fails != "" && strings.Contains(string(b), p.fails) {
				p.inForce += " and a part of " + string(b)
				return true, errors.New("the alertmanager does not take it")
			}
			p.inForce = string(b)
			return false, nil
		},
		Members: p.members,
	})
	require.NoError(t, err)
	return s
}

func (p *place) put(t *testing.T, files map[string]string) {
	t.Helper()
	for name, text := range files {
		require.NoError(t, p.Upload(t.Context(), "config/"+name, strings.NewReader(text)))
	}
}

func (p *place) live(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	tr, err := readDir(filepath.Join(p.dir, liveName))
	if errors.Is(err, os.ErrNotExist) {
		return found
	}
	require.NoError(t, err)
	for name, b := range tr {
		found[name] = string(b)
	}
	return found
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(text), 0o644))
	}
	return dir
}

func TestWithoutAPushAConfigurationIsTakenWhenItIsSeenTwice(t *testing.T) {
	p := newPlace(t)
	s := p.source(t)
	s.poll(t.Context())
	require.Equal(t, StateWaiting, s.Status().State)
	require.Empty(t, s.Status().Hash)

	first := map[string]string{"tocsin.yml": "one", "rules/a.yml": "a"}
	p.put(t, first)
	s.poll(t.Context())
	require.Equal(t, StateWaiting, s.Status().State)
	require.Empty(t, p.live(t))
	s.poll(t.Context())
	require.Equal(t, StateApplied, s.Status().State, s.Status().Problem)
	require.Equal(t, first, p.live(t))
	s.poll(t.Context())
	require.Equal(t, 1, p.applied)

	// What vanishes there vanishes here, the folder too.
	require.NoError(t, p.Delete(t.Context(), "config/rules/a.yml"))
	p.put(t, map[string]string{"rules.yml": "a"})
	s.poll(t.Context())
	s.poll(t.Context())
	require.Equal(t, map[string]string{"tocsin.yml": "one", "rules.yml": "a"}, p.live(t))
	require.NoDirExists(t, filepath.Join(p.dir, liveName, "rules"))
}

func TestABadConfigurationChangesNothing(t *testing.T) {
	p := newPlace(t)
	s := p.source(t)
	d := Depot{Bucket: p.files, Prefix: "config/", Who: "ann@desk"}
	good := map[string]string{"tocsin.yml": "one"}
	hash, err := d.Push(t.Context(), folder(t, good))
	require.NoError(t, err)
	s.poll(t.Context())
	require.Equal(t, hash, s.Status().Hash)

	bad, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "bad", "b.yml": ""}))
	require.NoError(t, err)
	s.poll(t.Context())
	st := s.Status()
	require.Equal(t, StateRefused, st.State)
	require.Equal(t, hash, st.Hash)
	require.Equal(t, bad, st.SeenHash)
	require.Contains(t, st.Problem, "it is bad")
	require.Equal(t, good, p.live(t))
	require.Equal(t, 1, p.applied)

	back, err := d.Rollback(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, hash, back)
	s.poll(t.Context())
	require.Equal(t, StateApplied, s.Status().State)
}

func TestAHalfPushIsWaitedForAndThenRefusedByName(t *testing.T) {
	p := newPlace(t)
	synctest.Test(t, func(t *testing.T) {
		s := p.source(t)
		d := Depot{Bucket: p.files, Prefix: "config/", Who: "ann@desk"}
		hash, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "one", "a.yml": "a"}))
		require.NoError(t, err)
		s.poll(t.Context())
		require.Equal(t, StateApplied, s.Status().State, s.Status().Problem)

		p.put(t, map[string]string{"a.yml": "other"})
		s.poll(t.Context())
		require.Equal(t, StateWaiting, s.Status().State)
		<-time.After(unsettled + time.Second)
		s.poll(t.Context())
		st := s.Status()
		require.Equal(t, StateRefused, st.State)
		require.Contains(t, st.Problem, "a.yml has another content")
		require.Contains(t, st.Problem, "ann@desk")
		require.Equal(t, hash, st.Hash)
	})
}

func TestAStartWithoutTheBucketTakesTheLastGood(t *testing.T) {
	p := newPlace(t)
	require.NoError(t, p.source(t).Begin(t.Context()))
	d := Depot{Bucket: p.files, Prefix: "config/"}
	good := map[string]string{"tocsin.yml": "one", "t/targets.json": "[]"}
	hash, err := d.Push(t.Context(), folder(t, good))
	require.NoError(t, err)

	// A first start takes what is there at once.
	s := p.source(t)
	require.NoError(t, s.Begin(t.Context()))
	require.Equal(t, hash, s.Status().Hash)
	s.keep(hash)

	require.NoError(t, os.Rename(p.root, p.root+".away"))
	require.NoError(t, os.RemoveAll(filepath.Join(p.dir, liveName)))
	s = p.source(t)
	require.NoError(t, s.Begin(t.Context()))
	require.Equal(t, hash, s.Status().Hash)
	require.Equal(t, StateWaiting, s.Status().State)
	require.Equal(t, good, p.live(t))
	s.poll(t.Context())
	require.Equal(t, good, p.live(t))

	// One that was refused is not started with.
	require.NoError(t, os.Rename(p.root+".away", p.root))
	_, err = d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "bad"}))
	require.NoError(t, err)
	s = p.source(t)
	require.NoError(t, s.Begin(t.Context()))
	require.Equal(t, hash, s.Status().Hash)
}

func TestHostileNamesAreRefused(t *testing.T) {
	for _, names := range [][]string{{"../x"}, {"a//b"}, {"/etc/passwd"}, {"a\nb"}, {`a\b`}, {"a", "a/b"}, {strings.Repeat("a", 300)}, {"a/../b"}, {"\xff"}} {
		require.Error(t, checkNames(names), "%q", names)
	}
	require.NoError(t, checkNames([]string{"tocsin.yml", "rules/a.yml", "rules/b c.yml"}))
}

func TestTheHistoryIsBounded(t *testing.T) {
	p := newPlace(t)
	synctest.Test(t, func(t *testing.T) {
		d := Depot{Bucket: p.files, Prefix: "config/"}
		var hashes []string
		for i := range keptPushes + 3 {
			hash, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": fmt.Sprint(i)}))
			require.NoError(t, err)
			hashes = append(hashes, hash)
			<-time.After(time.Second)
		}
		all, err := d.History(t.Context())
		require.NoError(t, err)
		require.Len(t, all, keptPushes)
		require.Equal(t, ShortHash(hashes[len(hashes)-2]), all[0].Hash)

		back, err := d.Rollback(t.Context(), hashes[5])
		require.NoError(t, err)
		require.Equal(t, hashes[5], back)
		dir := filepath.Join(t.TempDir(), "pulled")
		hash, n, err := d.Pull(t.Context(), dir, false)
		require.NoError(t, err)
		require.Equal(t, hashes[5], hash)
		require.Equal(t, 1, n)
		changes, err := d.Diff(t.Context(), dir)
		require.NoError(t, err)
		require.Empty(t, changes)
	})
}

func TestWhoDoesNotSeeTheBucketSpeaksForItselfAlone(t *testing.T) {
	p := newPlace(t)
	other := mesh.CardConfig{}
	p.members = func() []mesh.Member {
		return []mesh.Member{
			{Name: "a", Self: true, Alive: true},
			{Name: "b", Alive: true, Card: mesh.Card{Cluster: "c", Config: other}},
		}
	}
	s := p.source(t)
	d := Depot{Bucket: p.files, Prefix: "config/"}
	hash, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "one"}))
	require.NoError(t, err)
	s.poll(t.Context())
	other = mesh.CardConfig{Hash: ShortHash(hash), Seen: ShortHash(hash), State: StateApplied}
	require.Equal(t, map[string]Lag{"a": {}, "b": {}}, s.Behind())

	// The other one sees a push, and this one does not.
	other = mesh.CardConfig{Hash: "0123456789ab", Seen: "0123456789ab", State: StateApplied}
	require.NotEmpty(t, s.Behind()["b"].Why)
	blind := func(s *Source) {
		t.Helper()
		behind := s.Behind()
		require.NotContains(t, behind, "b")
		require.Contains(t, behind["a"].Why, "it sees no whole configuration in the bucket (")
		require.True(t, behind["a"].Waits)
	}
	require.NoError(t, os.Rename(p.root, p.root+".away"))
	s.poll(t.Context())
	blind(s)
	require.NoError(t, os.WriteFile(p.root, nil, 0o600))
	s.poll(t.Context())
	blind(s)
	s = p.source(t)
	require.NoError(t, s.Begin(t.Context()))
	blind(s)

	// What the other says of itself it goes on saying.
	other.State = StateRefused
	require.Equal(t, map[string]Lag{"b": {Why: "it refuses what is in the bucket, and runs on 0123456789ab"}}, map[string]Lag{"b": s.Behind()["b"]})
}

// cutOff is a bucket that fails after some writes.
type cutOff struct {
	objstore.Bucket
	left atomic.Int64
}

func (c *cutOff) Upload(ctx context.Context, name string, r io.Reader, opts ...objstore.ObjectUploadOption) error {
	if c.left.Add(-1) < 0 {
		return errors.New("cut off")
	}
	return c.Bucket.Upload(ctx, name, r, opts...)
}

func TestARollbackTakesNoPushThatWasCutOff(t *testing.T) {
	p := newPlace(t)
	d := Depot{Bucket: p.files, Prefix: "config/"}
	first, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "one", "a.yml": "one"}))
	require.NoError(t, err)
	// Two files of the history, the manifest, three files; and in the last one the manifest and two files.
	for _, writes := range []int{0, 1, 2, 3, 3} {
		bkt := &cutOff{Bucket: p.files}
		bkt.left.Store(int64(writes))
		_, err := Depot{Bucket: bkt, Prefix: "config/"}.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "two", "a.yml": "two", "b.yml": "two"}))
		require.ErrorContains(t, err, "cut off")
	}
	_, whole, err := d.current(t.Context())
	require.NoError(t, err)
	require.False(t, whole)

	third, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "three"}))
	require.NoError(t, err)
	back, err := d.Rollback(t.Context(), "")
	require.NoError(t, err)
	require.Equal(t, first, back)
	back, err = d.Rollback(t.Context(), third)
	require.NoError(t, err)
	require.Equal(t, third, back)

	// Of two copies of one configuration the later one may be cut off.
	require.NoError(t, p.Upload(t.Context(), "config/.history/20990101T000000.000Z-"+ShortHash(first)+"/tocsin.yml", strings.NewReader("on")))
	back, err = d.Rollback(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, first, back)
}

func TestAFileMayBecomeAFolderAndTheOtherWayRound(t *testing.T) {
	for name, open := range map[string]func(p *place) objstore.Bucket{
		"files":   func(p *place) objstore.Bucket { return p.files },
		"objects": func(*place) objstore.Bucket { return objstore.NewInMemBucket() },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			bkt := open(p)
			p.bkt = bkt
			s := p.source(t)
			d := Depot{Bucket: bkt, Prefix: "config/"}
			push := func(files map[string]string) {
				t.Helper()
				hash, err := d.Push(t.Context(), folder(t, files))
				require.NoError(t, err)
				s.poll(t.Context())
				require.Equal(t, hash, s.Status().Hash, s.Status().Problem)
				require.Equal(t, files, p.live(t))
			}
			file := map[string]string{"tocsin.yml": "one", "rules": "r", "x": "x"}
			below := map[string]string{"tocsin.yml": "one", "rules/a.yml": "a", "rules/b/c.yml": "c", "x": "x"}
			push(file)
			push(below)
			push(file)
			hash, err := d.Rollback(t.Context(), "")
			require.NoError(t, err)
			s.poll(t.Context())
			require.Equal(t, hash, s.Status().Hash, s.Status().Problem)
			require.Equal(t, below, p.live(t))

			// A bad one does not come in between.
			_, err = d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "bad", "rules": "r"}))
			require.NoError(t, err)
			s.poll(t.Context())
			require.Equal(t, below, p.live(t))
			push(file)

			if name == "files" {
				return
			}
			// Where both can be, a push removes what it does not have.
			require.NoError(t, bkt.Upload(t.Context(), "config/rules/a.yml", strings.NewReader("a")))
			push(below)
		})
	}
}

func TestAStartTakesWhatWasCopiedByHand(t *testing.T) {
	for name, age := range map[string]time.Duration{"just now": 0, "a while ago": 2 * unchangedAge} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			synctest.Test(t, func(t *testing.T) {
				for _, text := range []string{"one", "two"} { // with nothing in force before, and with something
					files := map[string]string{"tocsin.yml": text, "a.yml": text}
					p.put(t, files)
					for name := range files {
						at := time.Now().Add(-age)
						require.NoError(t, os.Chtimes(filepath.Join(p.root, "config", name), at, at))
					}
					s := p.source(t)
					require.NoError(t, s.Begin(t.Context()))
					require.Equal(t, StateApplied, s.Status().State, s.Status().Problem)
					require.Equal(t, files, p.live(t))
					s.keep(s.Status().Hash)
				}
			})
		})
	}
}

func TestAFirstStartWaitsAMomentForTheBucket(t *testing.T) {
	p := newPlace(t)
	d := Depot{Bucket: p.files, Prefix: "config/"}
	hash, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "one"}))
	require.NoError(t, err)
	away := &failing{Bucket: p.files, looks: 3}
	p.bkt = away
	synctest.Test(t, func(t *testing.T) {
		s := p.source(t)
		require.NoError(t, s.Begin(t.Context()))
		require.Equal(t, StateApplied, s.Status().State, s.Status().Problem)
		require.Equal(t, hash, s.Status().Hash)
		s.keep(hash)

		// With one at hand it is not waited for.
		away.looks = 1
		s = p.source(t)
		require.NoError(t, s.Begin(t.Context()))
		require.Equal(t, StateWaiting, s.Status().State)
		require.Contains(t, s.Status().Problem, "away")
		require.Equal(t, hash, s.Status().Hash)

		// And for ever it is not waited for, so that the process can say what it waits for.
		p.dir = filepath.Join(t.TempDir(), "new")
		away.looks = 1000
		s = p.source(t)
		require.NoError(t, s.Begin(t.Context()))
		require.Equal(t, StateWaiting, s.Status().State)
		require.Contains(t, s.Status().Problem, "away")
		require.Equal(t, hurry, s.pause())
		away.looks = 0
		s.poll(t.Context())
		require.Equal(t, hash, s.Status().Hash)
	})
}

// failing is a bucket that fails for some looks.
type failing struct {
	objstore.Bucket
	looks int
}

func (a *failing) IterWithAttributes(ctx context.Context, dir string, f func(objstore.IterObjectAttributes) error, opts ...objstore.IterOption) error {
	if a.looks > 0 {
		a.looks--
		return errors.New("the bucket is away")
	}
	return a.Bucket.IterWithAttributes(ctx, dir, f, opts...)
}

func TestWhatCannotBeAConfigurationIsRefusedAndNotTakenForABucketThatIsAway(t *testing.T) {
	for name, bad := range map[string][]string{
		"a file that is a folder":   {"rules", "rules/a.yml"},
		"a folder without a name":   {"/a.yml"},
		"one below":                 {"rules//a.yml"},
		"a backslash":               {`a\b`},
		"more than fits":            {"large-1", "large-2"},
		"a list of files too large": {manifestName},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t)
			bkt := objstore.NewInMemBucket()
			p.bkt = bkt
			p.members = func() []mesh.Member { return []mesh.Member{{Name: "a", Self: true, Alive: true}} }
			synctest.Test(t, func(t *testing.T) {
				s := p.source(t)
				d := Depot{Bucket: bkt, Prefix: "config/"}
				good := map[string]string{"tocsin.yml": "one"}
				hash, err := d.Push(t.Context(), folder(t, good))
				require.NoError(t, err)
				s.poll(t.Context())
				require.Equal(t, StateApplied, s.Status().State, s.Status().Problem)

				for _, name := range bad {
					size := 1
					if strings.HasPrefix(name, "large") || name == manifestName {
						size = maxTreeBytes/2 + 1
					}
					require.NoError(t, bkt.Upload(t.Context(), "config/"+name, bytes.NewReader(make([]byte, size))))
				}
				s.poll(t.Context())
				require.Equal(t, StateWaiting, s.Status().State)
				<-time.After(unsettled + time.Second)
				s.poll(t.Context())
				require.Equal(t, StateRefused, s.Status().State, s.Status().Problem)
				require.Equal(t, hash, s.Status().Hash)
				require.Equal(t, time.Now(), s.Status().LastSuccess)
				require.Contains(t, s.Behind()["a"].Why, "it refuses")
				require.Equal(t, good, p.live(t))
			})
		})
	}
}

func TestARefusalIsToldAllTheTime(t *testing.T) {
	p := newPlace(t)
	away := &failing{Bucket: p.files}
	p.bkt = away
	synctest.Test(t, func(t *testing.T) {
		s := p.source(t)
		d := Depot{Bucket: p.files, Prefix: "config/"}
		_, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": "bad"}))
		require.NoError(t, err)
		s.poll(t.Context())
		require.Equal(t, StateRefused, s.Status().State)
		since := s.Status().Since

		// While it is tried again it stays refused.
		<-time.After(tryAgain)
		s.poll(t.Context())
		require.Equal(t, StateRefused, s.Status().State)
		require.Equal(t, since, s.Status().Since)

		// The bucket was away for a moment, and what is there is known already.
		away.looks = 1
		s.poll(t.Context())
		require.Equal(t, StateWaiting, s.Status().State)
		s.poll(t.Context())
		require.Equal(t, StateRefused, s.Status().State)
		require.Contains(t, s.Status().Problem, "it is bad")
	})
}

func TestAConfigurationThatIsAppliedInPartIsTakenBack(t *testing.T) {
	p := newPlace(t)
	synctest.Test(t, func(t *testing.T) {
		s := p.source(t)
		d := Depot{Bucket: p.files, Prefix: "config/"}
		p.fails = "half"
		push := func(text string) string {
			t.Helper()
			hash, err := d.Push(t.Context(), folder(t, map[string]string{"tocsin.yml": text}))
			require.NoError(t, err)
			s.poll(t.Context())
			return hash
		}
		refused := func(hash, seen string) {
			t.Helper()
			st := s.Status()
			require.Equal(t, StateRefused, st.State)
			require.Equal(t, hash, st.Hash)
			require.Equal(t, seen, st.SeenHash)
			require.Contains(t, st.Problem, "the alertmanager does not take it")
		}

		// Before there is any, nothing is what there is to go back to.
		half := push("half a first")
		refused("", half)
		require.Equal(t, "nothing", p.inForce)
		require.Empty(t, p.live(t))

		good := push("one")
		require.Equal(t, StateApplied, s.Status().State, s.Status().Problem)
		half = push("half")
		refused(good, half)
		require.Equal(t, "one", p.inForce)
		require.Equal(t, map[string]string{"tocsin.yml": "one"}, p.live(t))
		require.Equal(t, good, s.noted(currentName))

		// It is not tried again at once, for that disturbs what runs.
		applied := p.applied
		<-time.After(2 * tryAgain)
		s.poll(t.Context())
		refused(good, half)
		require.Equal(t, applied, p.applied)
		<-time.After(applyAgain)
		s.poll(t.Context())
		refused(good, half)
		require.Equal(t, applied+2, p.applied)
		require.Equal(t, "one", p.inForce)

		// Going back may fail, too. That is said, and tried again, whatever is in the bucket.
		p.fails = ""
		good = push("two")
		require.Equal(t, good, s.Status().Hash)
		p.fails = "o" // "two", and what follows
		<-time.After(time.Second)
		half = push("another")
		refused(good, half)
		require.Contains(t, s.Status().Problem, "parts of both")
		require.Equal(t, "two and a part of another and a part of two", p.inForce)
		_, err := d.Rollback(t.Context(), "")
		require.NoError(t, err)
		s.poll(t.Context())
		require.Equal(t, StateRefused, s.Status().State, "what was in force is in the bucket again, and is not wholly in force")
		p.fails = "never"
		<-time.After(tryAgain)
		s.poll(t.Context())
		require.Equal(t, StateApplied, s.Status().State, s.Status().Problem)
		require.Equal(t, "two", p.inForce)
	})
}
