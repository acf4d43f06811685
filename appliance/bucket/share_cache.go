package bucket

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/oklog/ulid/v2"
	"github.com/thanos-io/objstore"
	"github.com/thanos-io/thanos/pkg/cache"
	"github.com/thanos-io/thanos/pkg/store/cache/cachekey"
)

// sizes are those of the blocks' objects, which Thanos's CachingBucket asks for first. What meta.json says of them spares a request.
type sizes struct {
	loaded func() *view

	mtx  sync.Mutex
	seen *simplelru.LRU[string, []byte]
}

func newSizes(loaded func() *view) (*sizes, error) {
	seen, err := simplelru.NewLRU[string, []byte](maxSizes, nil)
	if err != nil {
		return nil, fmt.Errorf("make the cache of the bucket: %w", err)
	}
	return &sizes{loaded: loaded, seen: seen}, nil
}

func (s *sizes) get(object string) ([]byte, bool) {
	if id, _, ok := parseObject(object); ok {
		if v := s.loaded(); v != nil && v.blocks[id] != nil {
			for _, f := range v.blocks[id].Thanos.Files {
				if f.SizeBytes > 0 && id.String()+"/"+f.RelPath == object {
					a, err := json.Marshal(objstore.ObjectAttributes{Size: f.SizeBytes})
					return a, err == nil
				}
			}
		}
	}
	s.mtx.Lock()
	defer s.mtx.Unlock()
	return s.seen.Get(object)
}

func (s *sizes) put(object string, attributes []byte) {
	s.mtx.Lock()
	defer s.mtx.Unlock()
	s.seen.Add(object, attributes)
}

// wanted is a part of an object that is looked for in a cache.
type wanted struct {
	subrange
	key string
}

// ownCache is this replica's cache as Thanos's CachingBucket wants it.
type ownCache struct{ s *share }

var _ cache.Cache = ownCache{}

// Fetch implements cache.Cache.
func (c ownCache) Fetch(_ context.Context, keys []string) map[string][]byte {
	found, missing, _ := c.fetch(keys)
	c.s.disk.misses.Add(float64(len(missing)))
	return found
}

// fetch also tells what is missing, in the order of the keys, which are of one object.
func (c ownCache) fetch(keys []string) (found map[string][]byte, missing []wanted, object string) {
	found = make(map[string][]byte, len(keys))
	for _, key := range keys {
		k, err := cachekey.ParseBucketCacheKey(key)
		switch {
		case err != nil:
		case k.Verb == cachekey.AttributesVerb:
			if a, ok := c.s.sizes.get(k.Name); ok {
				found[key] = a
			}
		case k.Verb == cachekey.SubrangeVerb:
			id, file, ok := parseObject(k.Name)
			if !ok {
				continue
			}
			part := subrange{id, file, k.Start, k.End}
			if data, ok := c.s.disk.get(part); ok {
				c.s.hit(fromDisk, len(data))
				found[key] = data
				continue
			}
			object = k.Name
			missing = append(missing, wanted{part, key})
		}
	}
	return found, missing, object
}

func (s *share) hit(from string, size int) {
	s.disk.hits.WithLabelValues(from).Inc()
	s.disk.hitBytes.WithLabelValues(from).Add(float64(size))
}

// Store implements cache.Cache.
func (c ownCache) Store(data map[string][]byte, _ time.Duration) {
	c.store(data, func(ulid.ULID) bool { return true })
}

func (c ownCache) store(data map[string][]byte, keeps func(ulid.ULID) bool) {
	for key, content := range data {
		k, err := cachekey.ParseBucketCacheKey(key)
		switch {
		case err != nil:
		case k.Verb == cachekey.AttributesVerb:
			c.s.sizes.put(k.Name, content)
		case k.Verb == cachekey.SubrangeVerb:
			if id, file, ok := parseObject(k.Name); ok && keeps(id) {
				c.s.disk.put(subrange{id, file, k.Start, k.End}, content)
			}
		}
	}
}

// commonCache is the cache of all replicas.
type commonCache struct{ ownCache }

// Fetch implements cache.Cache.
func (c commonCache) Fetch(ctx context.Context, keys []string) map[string][]byte {
	found, missing, object := c.fetch(keys)
	if len(missing) > 0 {
		if owner := c.s.owner(missing[0].block); owner != c.s.b.o.Replica {
			begin := missing[0].begin
			if data, err := c.s.ask(ctx, owner, object, begin, missing[len(missing)-1].end); err == nil {
				for _, m := range missing {
					found[m.key] = data[m.begin-begin : m.end-begin : m.end-begin]
					c.s.hit(fromPeer, int(m.end-m.begin))
				}
				return found
			}
		}
	}
	c.s.disk.misses.Add(float64(len(missing)))
	return found
}

// Store implements cache.Cache. What another replica keeps is not kept here: so the replicas keep three times as much.
func (c commonCache) Store(data map[string][]byte, _ time.Duration) {
	c.store(data, func(id ulid.ULID) bool { return c.s.owner(id) == c.s.b.o.Replica })
}
