import { ActionIcon, Button, CopyButton, Group, TextInput } from "@mantine/core";
import { IconArrowLeft } from "@tabler/icons-react";
import { useEffect, useMemo, useRef, useState } from "react";
import { usePrometheus } from "../../api/hooks";
import { Loaded } from "../../components/Loaded";
import { Empty, State } from "../../components/Notice";
import { formatSeries, type Labels, plural, quoteLabelName, quoteString } from "../../lib/format";
import { fuzzyScore } from "../../lib/search";
import css from "./query.module.css";

type Metadata = Record<string, { type: string; help: string; unit: string }[]>;

interface Props {
  onInsert: (text: string) => void;
  onRun: (text: string) => void;
}

const most = 100;

/** All metrics, and the labels of one of them. */
export default function Explorer({ onInsert, onRun }: Props) {
  const [metric, setMetric] = useState<string>();
  const [search, setSearch] = useState("");
  return metric === undefined ? (
    <Metrics search={search} onSearch={setSearch} onPick={setMetric} onRun={onRun} />
  ) : (
    <LabelsOf metric={metric} onBack={() => setMetric(undefined)} onInsert={onInsert} onRun={onRun} />
  );
}

function Metrics({
  search,
  onSearch,
  onPick,
  onRun,
}: {
  search: string;
  onSearch: (s: string) => void;
  onPick: (m: string) => void;
  onRun: (text: string) => void;
}) {
  const names = usePrometheus<string[]>("label/__name__/values");
  const metadata = usePrometheus<Metadata>("metadata");
  // It may come after the dialog, which gives the focus to its close button when it has nothing else.
  const field = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const t = setTimeout(() => field.current?.focus(), 150);
    return () => clearTimeout(t);
  }, []);
  const found = useMemo(() => {
    const all = names.data?.data ?? [];
    if (search === "") return all;
    return all
      .map((name): [number, string] => [fuzzyScore(name, search), name])
      .filter(([score]) => score > 0)
      .sort(([a, x], [b, y]) => b - a || x.length - y.length)
      .map(([, name]) => name);
  }, [names.data, search]);
  return (
    <div className={css.explorer}>
      <TextInput
        ref={field}
        data-autofocus
        type="search"
        aria-label="Search metrics"
        placeholder="Search metrics"
        value={search}
        onChange={(e) => onSearch(e.currentTarget.value)}
      />
      <Loaded query={names}>
        {() =>
          found.length === 0 ? (
            <Empty>{search === "" ? "There are no metrics yet." : "No metric goes by that name."}</Empty>
          ) : (
            <div>
              {found.slice(0, most).map((name) => {
                const meta = metadata.data?.data[name] ?? metadata.data?.data[name.replace(/_(bucket|count|sum|total)$/, "")];
                return (
                  <div key={name} className={css.metric}>
                    <button type="button" onClick={() => onPick(name)}>
                      {name}
                    </button>
                    <Group gap="xs">
                      {meta?.[0] && <State kind="quiet">{meta[0].type}</State>}
                      <Button
                        size="compact-xs"
                        variant="default"
                        onClick={() => onRun(formatSeries({ __name__: name }))}
                        aria-label={`Run ${name}`}
                      >
                        Run
                      </Button>
                    </Group>
                    {meta?.[0]?.help && <p className={css.hint}>{meta[0].help}</p>}
                  </div>
                );
              })}
              {found.length > most && <p className={css.hint}>And {found.length - most} more: search to narrow them down.</p>}
            </div>
          )
        }
      </Loaded>
    </div>
  );
}

function LabelsOf({ metric, onBack, onInsert, onRun }: { metric: string; onBack: () => void } & Props) {
  const [picked, setPicked] = useState<Labels>({});
  const [all, setAll] = useState<ReadonlySet<string>>(new Set());
  const selector = formatSeries({ __name__: metric, ...picked });
  const matchers = [
    `{__name__=${quoteString(metric)}${Object.entries(picked)
      .map(([k, v]) => `,${quoteLabelName(k)}=${quoteString(v)}`)
      .join("")}}`,
  ];
  const series = usePrometheus<Labels[]>("series", {
    params: { "match[]": matchers, limit: 10_000, start: Math.floor(Date.now() / 60_000) * 60 - 3600 },
  });
  return (
    <div className={css.explorer}>
      <Group gap="xs" wrap="nowrap">
        <ActionIcon variant="default" aria-label="Back to all metrics" onClick={onBack}>
          <IconArrowLeft size={16} />
        </ActionIcon>
        <code style={{ overflowWrap: "anywhere" }}>{selector}</code>
      </Group>
      <Group gap="xs">
        <Button size="xs" onClick={() => onRun(selector)}>
          Run
        </Button>
        <Button size="xs" variant="default" onClick={() => onInsert(selector)}>
          Insert
        </Button>
        <CopyButton value={selector}>
          {({ copied, copy }) => (
            <Button size="xs" variant="default" onClick={copy}>
              {copied ? "Copied" : "Copy"}
            </Button>
          )}
        </CopyButton>
        {Object.keys(picked).length > 0 && (
          <Button size="xs" variant="subtle" onClick={() => setPicked({})}>
            All series
          </Button>
        )}
      </Group>
      <Loaded query={series}>
        {({ data }) => (
          <>
            <p className={css.hint}>{plural(data.length, "series", "series")} in the last hour</p>
            {labelCounts(data).map(([name, values]) => (
              <div key={name} className={css.metric}>
                <code>{name}</code>
                <State kind="quiet">{plural(values.length, "value")}</State>
                <Group gap={4} style={{ gridColumn: "1 / -1" }}>
                  {(all.has(name) ? values : values.slice(0, 12)).map(([value, n]) => (
                    <Button
                      key={value}
                      size="compact-xs"
                      variant={picked[name] === value ? "filled" : "default"}
                      onClick={() => setPicked(toggle(picked, name, value))}
                      title={plural(n, "series", "series")}
                    >
                      {value === "" ? '""' : value}
                    </Button>
                  ))}
                  {values.length > 12 && !all.has(name) && (
                    <Button size="compact-xs" variant="subtle" onClick={() => setAll(new Set([...all, name]))}>
                      {values.length - 12} more
                    </Button>
                  )}
                </Group>
              </div>
            ))}
          </>
        )}
      </Loaded>
    </div>
  );
}

function toggle(picked: Labels, name: string, value: string): Labels {
  const { [name]: old, ...rest } = picked;
  return old === value ? rest : { ...rest, [name]: value };
}

/** Labels with most values first, and of each its values with most series first. */
function labelCounts(series: Labels[]): [string, [string, number][]][] {
  const counts = new Map<string, Map<string, number>>();
  for (const s of series) {
    for (const [k, v] of Object.entries(s)) {
      if (k === "__name__") continue;
      const values = counts.get(k) ?? new Map<string, number>();
      counts.set(k, values);
      values.set(v, (values.get(v) ?? 0) + 1);
    }
  }
  return [...counts.entries()]
    .map(([k, v]): [string, [string, number][]] => [k, [...v.entries()].sort(([a, n], [b, m]) => m - n || a.localeCompare(b))])
    .sort(([a, v], [b, w]) => w.length - v.length || a.localeCompare(b));
}
