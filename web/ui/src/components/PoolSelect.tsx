import { Select } from "@mantine/core";
import { usePrometheus } from "../api/hooks";

/** One scrape pool, or all of them (""): with many targets, one of them is what a person looks for. */
export function PoolSelect({ value, onChange }: { value: string; onChange: (pool: string) => void }) {
  const pools = usePrometheus<{ scrapePools: string[] }>("scrape_pools", { refresh: 60_000 });
  const names = pools.data?.data.scrapePools ?? [];
  // One that is gone is in the address still.
  const data = value && !names.includes(value) ? [value, ...names] : names;
  return (
    <Select
      aria-label="Scrape pool"
      placeholder="All scrape pools"
      data={data}
      value={value || null}
      onChange={(v) => onChange(v ?? "")}
      searchable
      clearable
      clearButtonProps={{ "aria-label": "All scrape pools" }}
      limit={200}
      nothingFoundMessage="No pool is called that."
      size="sm"
      style={{ flex: "0 1 16rem" }}
    />
  );
}
