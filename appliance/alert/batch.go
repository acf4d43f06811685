package alert

import "sync"

const (
	// maxBatch is how many things go to another replica in one call, and maxCalls how many calls are under way to it at
	// once: one that travels while the next one is filled.
	maxBatch, maxCalls = 500, 2
)

// batches sends things to other replicas, as many at once as have come while the calls before were under way: one thing
// alone goes at once, and ten thousand go in twenty calls.
type batches[T any] struct {
	send func(member string, batch []T)

	mu      sync.Mutex
	waiting map[string][]T
	calls   map[string]int
	closed  bool
	jobs    sync.WaitGroup
}

func newBatches[T any](send func(member string, batch []T)) *batches[T] {
	return &batches[T]{send: send, waiting: map[string][]T{}, calls: map[string]int{}}
}

// add does not block. After close nothing is sent.
func (b *batches[T]) add(member string, thing T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	b.waiting[member] = append(b.waiting[member], thing)
	if b.calls[member] < maxCalls {
		b.calls[member]++
		b.jobs.Go(func() { b.run(member) })
	}
}

// run makes calls until nothing waits.
func (b *batches[T]) run(member string) {
	for {
		batch := b.next(member)
		if len(batch) == 0 {
			return
		}
		b.send(member, batch)
	}
}

// next is what goes in the next call; with nothing, the caller is done.
func (b *batches[T]) next(member string) []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.waiting[member]
	batch := all[:min(len(all), maxBatch)]
	if len(batch) == 0 {
		delete(b.waiting, member)
		if b.calls[member]--; b.calls[member] == 0 {
			delete(b.calls, member)
		}
		return nil
	}
	b.waiting[member] = all[len(batch):]
	return batch
}

// close waits for the calls that are under way and what waits for them. Upstream's groups may still be ending.
func (b *batches[T]) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.jobs.Wait()
}
