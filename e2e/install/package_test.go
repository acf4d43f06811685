package install

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// packageUnderTest is what was built.
func packageUnderTest(t *testing.T) string {
	t.Helper()
	deb := os.Getenv("TOCSIN_DEB")
	if deb == "" {
		t.Fatal("these tests install the real package: set TOCSIN_DEB to its path, or run `make install-test`")
	}
	deb, err := filepath.Abs(deb)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(deb); err != nil {
		t.Fatalf("TOCSIN_DEB names no package, run `make deb`: %v", err)
	}
	return deb
}

// versions makes packages with the same program and other versions.
type versions struct {
	w       *world
	tree    string // what the package under test has in it
	current string // its version
}

func (w *world) versions() *versions {
	w.t.Helper()
	deb := packageUnderTest(w.t)
	v := &versions{w: w, tree: filepath.Join(w.dir, "package"), current: strings.TrimSpace(w.must("dpkg-deb", "--field", deb, "Version"))}
	w.must("dpkg-deb", "--raw-extract", deb, v.tree)
	return v
}

// pack makes a package of that version, in which edit may have changed files. Files are shared with the original: edit
// must replace them.
func (v *versions) pack(version string, edit func(dir string)) string {
	v.w.t.Helper()
	dir := filepath.Join(v.w.dir, "package-"+version)
	v.w.must("cp", "-al", v.tree, dir)
	replace(v.w.t, filepath.Join(dir, "DEBIAN/control"), func(s string) string {
		return regexp.MustCompile(`(?m)^Version: .*`).ReplaceAllString(s, "Version: "+version)
	})
	if edit != nil {
		edit(dir)
	}
	deb := filepath.Join(v.w.dir, "tocsin_"+version+".deb")
	v.w.must("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", dir, deb)
	v.w.must("rm", "-rf", dir)
	return deb
}

// replace edits a file, whose other links stay as they are.
func replace(t *testing.T, path string, edit func(string) string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(edit(string(b))), fi.Mode()); err != nil {
		t.Fatal(err)
	}
}

// repository is a signed repository, served in the core.
type repository struct {
	w    *world
	dir  string
	url  string
	home string // of gpg
}

func (w *world) repository(debs ...string) *repository {
	w.t.Helper()
	r := &repository{w: w, dir: filepath.Join(w.dir, "apt"), home: filepath.Join(w.dir, "gpg")}
	if err := os.MkdirAll(r.home, 0o700); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { w.must("gpgconf", "--homedir", r.home, "--kill", "gpg-agent") })
	w.must("gpg", "--homedir", r.home, "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", "Test", "ed25519", "sign", "never")
	r.add(debs...)
	r.url = w.serve(8000, http.FileServer(http.Dir(r.dir)))
	return r
}

// add publishes more packages.
func (r *repository) add(debs ...string) {
	r.w.t.Helper()
	cmd := exec.Command("../../packaging/apt-repo.sh", append([]string{r.dir}, debs...)...)
	cmd.Env = append(os.Environ(), "GNUPGHOME="+r.home, "APT_KEY=Test")
	if out, err := cmd.CombinedOutput(); err != nil {
		r.w.t.Fatalf("make a repository: %v: %s", err, out)
	}
}

// key is what a machine needs to trust it.
func (r *repository) key() string {
	r.w.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "tocsin.asc"))
	if err != nil {
		r.w.t.Fatal(err)
	}
	return string(b)
}

// trust has a machine's apt know the repository, and no other.
func (n *node) trust(r *repository) {
	n.t.Helper()
	n.write("/etc/apt/keyrings/tocsin.asc", r.key(), 0o644)
	n.write("/etc/apt/sources.list.d/tocsin.list", "deb [signed-by=/etc/apt/keyrings/tocsin.asc] "+r.url+" ./\n", 0o644)
}

// apt runs apt-get as an unattended upgrade does, and returns what an administrator would have seen.
func (n *node) apt(args ...string) string {
	n.t.Helper()
	n.run("apt-get", "update", "-q")
	return n.run(append([]string{"apt-get", "-q", "-y", "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"}, args...)...)
}
