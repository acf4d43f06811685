package bucket

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// install puts a configuration where it is read; an empty one stands for none.
func (s *Source) install(t tree) error {
	if err := t.install(filepath.Join(s.o.Dir, liveName)); err != nil {
		return err
	}
	s.mtx.Lock()
	defer s.mtx.Unlock()
	s.live = len(t) > 0
	return nil
}

// take checks a configuration and puts it where it is read.
func (s *Source) take(t tree) error {
	dir := filepath.Join(s.o.Dir, versionsName, t.hash())
	if _, err := s.version(t.hash()); err != nil {
		if err := t.writeDir(dir); err != nil {
			return err
		}
	}
	if err := s.o.Check(dir); err != nil {
		return err
	}
	if err := s.install(t); err != nil {
		return errors.Join(err, s.back(s.Status().Hash))
	}
	return nil
}

// back puts the last configuration where it is read, again.
func (s *Source) back(hash string) error {
	t := tree{}
	if hash != "" {
		var err error
		if t, err = s.version(hash); err != nil {
			return err
		}
	}
	return s.install(t)
}

// version reads one of the kept ones; one that is not whole is an error.
func (s *Source) version(hash string) (tree, error) {
	t, err := readDir(filepath.Join(s.o.Dir, versionsName, hash))
	if err == nil && t.hash() != hash {
		err = fmt.Errorf("the copy of the configuration in %s is damaged", filepath.Join(s.o.Dir, versionsName, hash))
	}
	return t, err
}

// current is the last configuration that was in force, if its copy is whole; "" for none.
func (s *Source) current() string {
	hash := s.noted(currentName)
	if hash == "" || strings.ContainsAny(hash, `/\.`) {
		return ""
	}
	if _, err := s.version(hash); err != nil {
		s.logger.Warn("the last good configuration cannot be used", "hash", ShortHash(hash), "err", err)
		return ""
	}
	return hash
}

func (s *Source) noted(name string) string {
	b, err := os.ReadFile(filepath.Join(s.o.Dir, name))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.logger.Warn("a note about the configuration cannot be read", "file", name, "err", err)
		}
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (s *Source) write(name, text string) error {
	if err := os.MkdirAll(s.o.Dir, 0o750); err != nil {
		return fmt.Errorf("make the folder of the configuration: %w", err)
	}
	p := filepath.Join(s.o.Dir, name)
	err := writeFile(p+".new", []byte(text+"\n"), true)
	if err == nil {
		err = os.Rename(p+".new", p)
	}
	if err == nil {
		err = syncFolder(s.o.Dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", p, err)
	}
	return nil
}

// keep notes that a configuration was in force, and removes all but the last few.
func (s *Source) keep(hash string) {
	err := s.write(currentName, hash)
	if rerr := os.Remove(filepath.Join(s.o.Dir, beginningName)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		s.logger.Warn("it could not be noted which configuration is in force; a start without the bucket takes an older one", "hash", ShortHash(hash), "err", err)
	}
	versions := filepath.Join(s.o.Dir, versionsName)
	// Its time says when it was in force last.
	now := time.Now()
	err = os.Chtimes(filepath.Join(versions, hash), now, now)
	entries, rerr := os.ReadDir(versions)
	if err = errors.Join(err, rerr); err != nil {
		s.logger.Warn("old configurations are not removed", "err", err)
		return
	}
	age := map[string]time.Time{}
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			age[e.Name()] = info.ModTime()
		}
	}
	names := slices.SortedFunc(maps.Keys(age), func(a, b string) int { return age[b].Compare(age[a]) })
	for i, name := range names {
		if i < keptVersions || name == hash {
			continue
		}
		if err := os.RemoveAll(filepath.Join(versions, name)); err != nil {
			s.logger.Warn("an old configuration cannot be removed", "hash", ShortHash(name), "err", err)
		}
	}
}
