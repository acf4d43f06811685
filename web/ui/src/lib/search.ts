// Searching in long lists: every word must be somewhere.

export function words(query: string): string[] {
  return query.toLowerCase().split(/\s+/).filter(Boolean);
}

export function matches(text: string, query: string[]): boolean {
  return query.every((w) => text.includes(w));
}

/** An index over items, built once for each list, so that each key press costs one pass over strings that are ready. */
export function searchIndex<T>(items: readonly T[], text: (item: T) => string): (query: string) => T[] {
  const ready = items.map((item) => text(item).toLowerCase());
  return (query) => {
    const w = words(query);
    return w.length === 0 ? [...items] : items.filter((_, i) => matches(ready[i]!, w));
  };
}

/** How well a name fits what was typed, letter by letter; 0 is not at all. Runs and starts of words count more. */
export function fuzzyScore(name: string, query: string): number {
  if (query === "") return 1;
  const n = name.toLowerCase();
  const q = query.toLowerCase();
  const at = n.indexOf(q);
  if (at >= 0) return 1000 - Math.min(at, 400) - Math.min(n.length - q.length, 400) + (at === 0 || /[_:]/.test(n[at - 1]!) ? 200 : 0);
  let score = 0;
  let from = 0;
  let last = -2;
  for (const c of q) {
    if (c === " ") continue;
    const i = n.indexOf(c, from);
    if (i < 0) return 0;
    score += i === last + 1 ? 4 : i === 0 || /[_:]/.test(n[i - 1]!) ? 3 : 1;
    last = i;
    from = i + 1;
  }
  return Math.max(1, (score * 20) / (1 + n.length / 20));
}
