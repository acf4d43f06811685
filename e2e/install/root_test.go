package install

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rootPackages are what the machines have beyond Debian's essential packages: what a cloud image of Debian has as far
// as we meet it, cloud-init among it, and what the tests look with. openssh-server and locales are there because
// cloud-init fails without them.
const rootPackages = "systemd,systemd-sysv,dbus,libnss-systemd,cloud-init,iproute2,ca-certificates,gpg,curl,procps,nftables,locales," +
	"openssh-server,sudo,e2fsprogs,util-linux,python3,bash-completion"

const rootSuite = "bookworm"

// rootExcludes is what nobody on these machines reads.
var rootExcludes = []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"}

// machinesMissing says why there can be no machines here.
func machinesMissing() error {
	if os.Geteuid() != 0 {
		return errors.New("machines need root: run the tests as root")
	}
	for _, tool := range []string{"mmdebstrap", "systemd-nspawn", "unshare", "nsenter", "ip", "apt-ftparchive", "dpkg-deb", "gpg", "nft", "losetup", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("a program is missing, run `make test-deps`: %w", err)
		}
	}
	if _, err := os.Stat("/etc/apt/sources.list.d/debian.sources"); err != nil {
		return fmt.Errorf("the machines' Debian comes from where this one's does: %w", err)
	}
	return nil
}

// debianRoot returns the directory of the Debian root, which is made if this week's is not there yet. It must not be
// written to, and is there for as long as the test.
func debianRoot(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	cache = filepath.Join(cache, "tocsin-e2e")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	// Weekly, so that the machines are as up to date as real ones.
	year, week := time.Now().UTC().ISOWeek()
	key := sha256.Sum256(fmt.Append(nil, rootSuite, rootPackages, rootExcludes, year, week))
	root := filepath.Join(cache, fmt.Sprintf("root-%x", key[:6]))
	// Many use it at once; one makes it, and nobody removes it meanwhile.
	f, err := os.OpenFile(root+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	lock(t, f, syscall.LOCK_SH)
	if _, err := os.Stat(root); err == nil {
		return root
	}
	lock(t, f, syscall.LOCK_EX)
	if _, err := os.Stat(root); err != nil {
		removeOldRoots(t, cache, root)
		if err := makeRoot(t.Context(), root); err != nil {
			t.Fatal(err)
		}
	}
	lock(t, f, syscall.LOCK_SH)
	return root
}

func makeRoot(ctx context.Context, root string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	// Beside it, so that the directory of that name is whole.
	tmp := root + ".new"
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("remove a root that was not finished: %w", err)
	}
	args := []string{"--variant=apt", "--format=directory", "--dpkgopt=force-unsafe-io", "--include=" + rootPackages}
	for _, e := range rootExcludes {
		args = append(args, "--dpkgopt=path-exclude="+e)
	}
	args = append(args, rootSuite, tmp, "/etc/apt/sources.list.d/debian.sources")
	if out, err := exec.CommandContext(ctx, "mmdebstrap", args...).CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("make a Debian root: mmdebstrap: %w: %s", err, tail(string(out), 30)), os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, root); err != nil {
		return fmt.Errorf("make a Debian root: %w", err)
	}
	return nil
}

// removeOldRoots removes those of other weeks that no test uses.
func removeOldRoots(t *testing.T, cache, except string) {
	t.Helper()
	locks, err := filepath.Glob(filepath.Join(cache, "root-*.lock"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range locks {
		root := strings.TrimSuffix(path, ".lock")
		if root == except {
			continue
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			if err := errors.Join(os.RemoveAll(root), os.RemoveAll(root+".new"), os.Remove(path)); err != nil {
				t.Errorf("remove an old Debian root: %v", err)
			}
		}
		f.Close()
	}
}

// lock takes a lock, or changes to it; how is LOCK_SH or LOCK_EX.
func lock(t *testing.T, f *os.File, how int) {
	t.Helper()
	eventually(t, 10*time.Minute, "lock "+f.Name(), func() error { return syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB) })
}

// tail returns the last lines.
func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
