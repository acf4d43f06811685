// What was asked before, in this browser only.

import { readStored, writeStored } from "../../lib/settings";

const key = "tocsin.query-history";
const most = 50;

export function queryHistory(): string[] {
  const h = readStored<unknown>(key, []);
  return Array.isArray(h) ? h.filter((e): e is string => typeof e === "string") : [];
}

export function remember(expr: string): void {
  if (expr.trim() === "" || expr.length > 10_000) return;
  writeStored(key, [expr, ...queryHistory().filter((e) => e !== expr)].slice(0, most));
}

export function forget(): void {
  writeStored(key, []);
}
