// Finding words in a long text.

/** Where a text has what is looked for, in any case, each place once and not overlapping; at most so many. */
export function occurrences(text: string, sought: string, most = 1000): number[] {
  if (sought === "") return [];
  // The length must stay the same, which toLowerCase does not promise.
  const find = new RegExp(sought.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gi");
  const out: number[] = [];
  for (const m of text.matchAll(find)) {
    if (out.length === most) break;
    out.push(m.index);
  }
  return out;
}

export type FlagSort = "name" | "-name" | "value" | "-value";

/** Numbers in names and values count as numbers: 2h before 15d, but 9 before 10. */
export function sortFlags(flags: [string, string][], by: FlagSort): [string, string][] {
  const column = by.endsWith("value") ? 1 : 0;
  const way = by.startsWith("-") ? -1 : 1;
  const order = new Intl.Collator("en", { numeric: true }).compare;
  return [...flags].sort((a, b) => way * order(a[column], b[column]) || order(a[0], b[0]));
}
