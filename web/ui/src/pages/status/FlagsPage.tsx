import { useMemo } from "react";
import { usePrometheus } from "../../api/hooks";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import { Empty } from "../../components/Notice";
import { SearchInput } from "../../components/SearchInput";
import { searchIndex } from "../../lib/search";
import { useParam } from "../../lib/urlstate";
import css from "../pages.module.css";

export default function FlagsPage() {
  const flags = usePrometheus<Record<string, string>>("status/flags");
  return (
    <Frame title="Flags">
      <Loaded query={flags}>{({ data }) => <List flags={data} />}</Loaded>
    </Frame>
  );
}

function List({ flags }: { flags: Record<string, string> }) {
  const [search, setSearch] = useParam("search");
  const find = useMemo(() => searchIndex(Object.entries(flags).sort(), ([k, v]) => `--${k} ${v}`), [flags]);
  const found = find(search);
  return (
    <>
      <div className={css.bar}>
        <SearchInput value={search} onChange={setSearch} label="Search by name or value" />
      </div>
      {found.length === 0 ? (
        <Empty>No flag is like that.</Empty>
      ) : (
        <table className={css.table}>
          <thead>
            <tr>
              <th>Flag</th>
              <th>Value</th>
            </tr>
          </thead>
          <tbody>
            {found.map(([k, v]) => (
              <tr key={k}>
                <td>
                  <code>--{k}</code>
                </td>
                <td>
                  <code>{v}</code>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </>
  );
}
