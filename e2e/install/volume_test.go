package install

import (
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// volume is a disk of its own: a loop device over a file, which outlives the machines that it is given to.
type volume struct{ path, image string }

// volume makes one that is empty, as it comes from a cloud.
func (w *world) volume(name string, mib int) *volume {
	w.t.Helper()
	v := &volume{image: filepath.Join(w.dir, name+".img")}
	f, err := os.Create(v.image)
	if err != nil {
		w.t.Fatal(err)
	}
	err = f.Truncate(int64(mib) << 20)
	f.Close()
	if err != nil {
		w.t.Fatal(err)
	}
	v.path = strings.TrimSpace(w.must("losetup", "--find", "--show", v.image))
	w.t.Cleanup(func() { w.must("losetup", "--detach", v.path) })
	return v
}

// as is the argument for boot that attaches it to a machine.
func (v *volume) as(device string) string { return "--bind=" + v.path + ":" + device }

// blank makes it as it was when it was new.
func (v *volume) blank(t *testing.T) {
	t.Helper()
	size := v.size(t)
	f, err := os.OpenFile(v.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, size); err != nil {
		t.Fatalf("blank %s: %v", v.path, err)
	}
}

func (v *volume) size(t *testing.T) int64 {
	t.Helper()
	info, err := os.Stat(v.image)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// put writes something at a place of the device; a negative one is counted from the end.
func (v *volume) put(t *testing.T, at int64, what string) {
	t.Helper()
	if at < 0 {
		at += v.size(t)
	}
	f, err := os.OpenFile(v.path, os.O_WRONLY|syscall.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(what), at); err != nil {
		t.Fatal(err)
	}
}

// partition makes an empty partition on it, and returns the path of its device.
func (v *volume) partition(w *world) string {
	w.t.Helper()
	v.put(w.t, 510, "\x55\xaa")
	v.put(w.t, 446, "\x00\x00\x02\x00\x83\x00\x00\x00\x00\x08\x00\x00\x00\x00\x02\x00") // 64 MiB, from the second on
	w.must("partx", "--update", v.path)
	w.t.Cleanup(func() { w.must("partx", "--delete", v.path) })
	disk := filepath.Base(v.path)
	number, err := os.ReadFile(filepath.Join("/sys/block", disk, disk+"p1", "dev"))
	if err != nil {
		w.t.Fatal(err)
	}
	major, minor, _ := strings.Cut(strings.TrimSpace(string(number)), ":")
	path := filepath.Join(w.dir, disk+"p1") // In /dev there is one only where udev is.
	w.must("mknod", path, "b", major, minor)
	return path
}

// TestVolume holds that a data volume is found and found again, and that nothing which may be somebody's data is formatted.
func TestVolume(t *testing.T) {
	w := newWorld(t)
	n := w.node("a")
	script, err := os.ReadFile("../../packaging/volume/volume")
	if err != nil {
		t.Fatal(err)
	}
	n.write("/usr/lib/tocsin/volume", string(script), 0o755)
	b, c := w.volume("b", 80), w.volume("c", 80)
	d := w.volume("d", 80)
	n.boot(b.as("/dev/vdb"), c.as("/dev/vdc"), "--bind="+d.partition(w)+":/dev/vdd1", d.as(d.path)) // blkid looks for the whole disk, too.
	n.run("mkdir", "-p", "/var/lib/tocsin")

	// setUp calls it as its unit does, and says what is mounted afterwards.
	setUp := func(setting string) (said, mounted string, err error) {
		t.Helper()
		said, err = n.try("env", "VOLUME_WAIT=0", "VOLUME="+setting, "/usr/lib/tocsin/volume")
		mounted, _ = n.try("findmnt", "--noheadings", "--output=SOURCE,LABEL,OPTIONS", "/var/lib/tocsin") // 1: nothing is.
		return said, mounted, err
	}
	adopts := func(setting, device, want string) {
		t.Helper()
		said, mounted, err := setUp(setting)
		if err != nil || !strings.Contains(said, want) || !strings.HasPrefix(mounted, device+" ") || !strings.Contains(mounted, "tocsin-data") {
			t.Fatalf("VOLUME=%s: %v, mounted %q, says: %s", setting, err, mounted, said)
		}
	}
	refuses := func(setting string, want ...string) {
		t.Helper()
		before := [2]uint32{b.digest(t), c.digest(t)}
		said, mounted, err := setUp(setting)
		if err == nil || mounted != "" {
			t.Errorf("VOLUME=%s: %v, mounted %q, says: %s", setting, err, mounted, said)
		}
		for _, s := range want {
			if !strings.Contains(said, s) {
				t.Errorf("VOLUME=%s does not say %q but: %s", setting, s, said)
			}
		}
		if before != [2]uint32{b.digest(t), c.digest(t)} {
			t.Fatalf("VOLUME=%s has written to a disk that it refused", setting)
		}
	}
	umount := func() { t.Helper(); n.run("umount", "/var/lib/tocsin") }

	if said, mounted, err := setUp("none"); err != nil || said != "" || mounted != "" {
		t.Errorf("none: %v, mounted %q, says: %s", err, mounted, said)
	}
	refuses("sdb", "neither none nor auto nor a device")
	refuses("/dev/vdd", "there is no device /dev/vdd")
	refuses("auto", "more than one disk is empty", "/dev/vdb", "/dev/vdc", "VOLUME=DEVICE")

	// The one that is empty, beside one that is not.
	c.put(t, 500_000, "something")
	adopts("auto", "/dev/vdb", "makes a file system")
	if got := n.run("ls", "-A", "/var/lib/tocsin"); got != "lost+found\ntocsin.json\n" {
		t.Errorf("the new volume holds %q", got)
	}
	n.run("sh", "-c", "echo kept > /var/lib/tocsin/kept")
	adopts("auto", "/dev/vdb", "mounted already")
	umount()

	// Found again by its label, also beside an empty one.
	c.blank(t)
	adopts("auto", "/dev/vdb", "is mounted at")
	if got := n.run("cat", "/var/lib/tocsin/kept"); got != "kept\n" {
		t.Errorf("the volume that was found again holds %q", got)
	}
	umount()

	// Also where it is attached after an empty one.
	b.blank(t)
	b.put(t, 0, "not there yet")
	n.run("systemd-run", "--on-active=2", "--timer-property=AccuracySec=100ms", "mkfs.ext4", "-q", "-F", "-L", "tocsin-data", "/dev/vdb")
	adopts("auto", "/dev/vdb", "is mounted at")
	umount()
	adopts("/dev/vdc", "/dev/vdc", "makes a file system")
	umount()
	refuses("auto", "more than one device bears the label")

	// Whatever may be data.
	for _, tc := range []struct {
		name string
		fill func()
		want string
	}{
		{"a file system", func() { w.must("mkfs.ext4", "-q", "-F", "-L", "else", c.path) }, "ext4"},
		{"a swap area", func() { w.must("mkswap", c.path) }, "swap"},
		{"a partition table", func() {
			c.put(t, 510, "\x55\xaa")
			c.put(t, 446, "\x00\x00\x02\x00\x83\x00\x00\x00\x00\x08\x00\x00\x00\x10\x00\x00")
		}, "dos"},
		{"the beginning of something", func() { c.put(t, 1<<20-1, "x") }, "first MiB is not empty"},
		{"the end of something", func() { c.put(t, -1, "x") }, "last MiB is not empty"},
	} {
		b.blank(t)
		b.put(t, 0, "somebody's")
		c.blank(t)
		tc.fill()
		t.Log(tc.name)
		refuses("auto", "none is empty", "/dev/vdb has no file system, but", "/dev/vdc", tc.want)
		refuses("/dev/vdc", tc.want)
	}

	// What is in the directory would be hidden.
	c.blank(t)
	n.run("touch", "/var/lib/tocsin/data")
	refuses("auto", "holds data, which a volume would hide")
	n.run("rm", "/var/lib/tocsin/data")
	adopts("auto", "/dev/vdc", "makes a file system")
	umount()

	// A partition, which has an entry in a table, is not something for that.
	adopts("/dev/vdd1", "/dev/vdd1", "makes a file system")
	umount()
	adopts("/dev/vdd1", "/dev/vdd1", "is mounted at")
	umount()
}

// digest changes with what is on the device.
func (v *volume) digest(t *testing.T) uint32 {
	t.Helper()
	f, err := os.Open(v.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return sum.Sum32()
}
