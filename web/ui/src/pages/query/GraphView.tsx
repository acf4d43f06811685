import { ActionIcon, Checkbox, SegmentedControl, Select, TextInput } from "@mantine/core";
import { IconMinus, IconPlus } from "@tabler/icons-react";
import { type UseQueryResult, useQuery } from "@tanstack/react-query";
import { useEffect, useMemo, useState } from "react";
import { type ApiError, requestPrometheus } from "../../api/client";
import { useJSON } from "../../api/hooks";
import type { Gaps } from "../../api/types";
import { Failures } from "../../components/Loaded";
import { Empty } from "../../components/Notice";
import { formatDuration, parseDuration } from "../../lib/duration";
import type { Labels } from "../../lib/format";
import { Answered } from "./Answer";
import { type Asked, seriesOf } from "./ask";
import Chart, { type Exemplar } from "./Chart";
import { type Density, nextRange, type PanelState } from "./model";
import css from "./query.module.css";
import { parseValue, stretches } from "./series";
import { TimeField } from "./TimeField";

interface Props {
  state: PanelState;
  step: number;
  expr: string;
  query: UseQueryResult<Asked, ApiError>;
  onChange: (part: Partial<PanelState>) => void;
}

const resolutions = [
  { value: "low", label: "Low resolution" },
  { value: "medium", label: "Medium resolution" },
  { value: "high", label: "High resolution" },
  ...[10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000].map((ms) => ({ value: String(ms), label: `Every ${formatDuration(ms)}` })),
  { value: "custom", label: "Every …" },
];

export default function GraphView({ state, step, expr, query, onChange }: Props) {
  const { data: gaps, error: noGaps } = useJSON<Gaps>("api/tocsin/v1/gaps", { enabled: state.gaps, refresh: 15_000 });
  const shown = query.data && query.data.data.resultType === "matrix" && !query.error ? query.data : undefined;
  const { exemplars, error: noExemplars } = useExemplars(expr, shown, state.exemplars);
  const series = useMemo(() => (shown ? seriesOf(shown.data) : []), [shown]);
  const shading = useMemo(
    () =>
      state.gaps && gaps && shown
        ? stretches(
            gaps.gaps,
            series.map((s) => s.metric),
            shown.start,
            shown.end,
            Date.now(),
          )
        : [],
    [state.gaps, gaps, shown, series],
  );
  const { resolution } = state;
  return (
    <>
      <div className={css.controls}>
        <RangeField value={state.range} onChange={(range) => onChange({ range })} />
        <TimeField value={state.end} onChange={(end) => onChange({ end })} range={state.range} label="Until" />
        <Select
          size="xs"
          w={150}
          aria-label="Resolution"
          allowDeselect={false}
          data={resolutions}
          value={
            resolution.type === "auto"
              ? resolution.density
              : resolution.type === "fixed" && resolutions.some((r) => r.value === String(resolution.step))
                ? String(resolution.step)
                : "custom"
          }
          onChange={(v) => {
            if (v === "low" || v === "medium" || v === "high") onChange({ resolution: { type: "auto", density: v as Density } });
            else if (v === "custom") onChange({ resolution: { type: "custom", step } });
            else if (v) onChange({ resolution: { type: "fixed", step: Number(v) } });
          }}
        />
        {resolution.type !== "auto" && (
          <DurationField
            label="Step"
            value={resolution.step || step}
            onChange={(ms) => onChange({ resolution: { type: "custom", step: ms } })}
          />
        )}
        <SegmentedControl
          size="xs"
          aria-label="Lines or stacked"
          value={state.display}
          onChange={(v) => onChange({ display: v as PanelState["display"] })}
          data={[
            { value: "lines", label: "Lines" },
            { value: "stacked", label: "Stacked" },
          ]}
        />
        <div className={css.checks}>
          <Checkbox
            size="xs"
            label="From zero"
            checked={state.yMin === 0}
            disabled={state.log}
            onChange={(e) => onChange({ yMin: e.currentTarget.checked ? 0 : null })}
          />
          <Checkbox size="xs" label="Log scale" checked={state.log} onChange={(e) => onChange({ log: e.currentTarget.checked })} />
          <Checkbox
            size="xs"
            label="Exemplars"
            checked={state.exemplars}
            onChange={(e) => onChange({ exemplars: e.currentTarget.checked })}
          />
          <Checkbox size="xs" label="Gaps" checked={state.gaps} onChange={(e) => onChange({ gaps: e.currentTarget.checked })} />
        </div>
      </div>
      <Failures errors={[state.gaps && noGaps, state.exemplars && noExemplars]} below={query.error} />
      {expr === "" ? (
        <Empty>Enter an expression to see its graph.</Empty>
      ) : (
        <Answered query={query}>
          {() =>
            shown && series.length > 0 ? (
              <Chart
                series={series}
                start={shown.start}
                end={shown.end}
                step={shown.step}
                stacked={state.display === "stacked"}
                log={state.log}
                yMin={state.yMin}
                stretches={shading}
                exemplars={exemplars}
                onZoom={(from, to) =>
                  onChange({ range: Math.max(1000, Math.round((to - from) / 1000) * 1000), end: Math.round(to / 1000) * 1000 })
                }
                onAsTable={() => onChange({ tab: "table", moment: state.end })}
              />
            ) : (
              <Empty>The query is right, and nothing matches it in this range.</Empty>
            )
          }
        </Answered>
      )}
    </>
  );
}

function RangeField({ value, onChange }: { value: number; onChange: (ms: number) => void }) {
  return (
    <div className={css.stepper}>
      <ActionIcon variant="default" size={30} aria-label="Shorter range" onClick={() => onChange(nextRange(value, false))}>
        <IconMinus size={14} />
      </ActionIcon>
      <DurationField label="Range" value={value} onChange={onChange} />
      <ActionIcon variant="default" size={30} aria-label="Longer range" onClick={() => onChange(nextRange(value, true))}>
        <IconPlus size={14} />
      </ActionIcon>
    </div>
  );
}

function DurationField({ label, value, onChange }: { label: string; value: number; onChange: (ms: number) => void }) {
  const shown = formatDuration(value);
  const [text, setText] = useState(shown);
  useEffect(() => setText(shown), [shown]);
  const ms = parseDuration(text);
  const commit = () => {
    if (ms && ms !== value) onChange(ms);
    else if (!ms) setText(shown);
  };
  return (
    <TextInput
      size="xs"
      w={72}
      aria-label={label}
      value={text}
      error={!ms}
      onChange={(e) => setText(e.currentTarget.value)}
      onBlur={commit}
      onKeyDown={(e) => e.key === "Enter" && commit()}
      styles={{ input: { textAlign: "center", borderRadius: 0 } }}
    />
  );
}

interface ExemplarAnswer {
  seriesLabels: Labels;
  exemplars: { labels: Labels; value: string; timestamp: number }[];
}

function useExemplars(expr: string, shown: Asked | undefined, on: boolean) {
  const { data, error } = useQuery({
    queryKey: ["exemplars", expr, shown?.start, shown?.end],
    queryFn: async ({ signal }) =>
      (
        await requestPrometheus<ExemplarAnswer[]>("query_exemplars", {
          signal,
          params: { query: expr, start: shown!.start / 1000, end: shown!.end / 1000 },
        })
      ).data,
    enabled: on && shown !== undefined,
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 60_000,
  });
  const exemplars = useMemo<Exemplar[]>(
    () =>
      on && data
        ? data
            .flatMap((s) =>
              s.exemplars.map((e) => ({ time: e.timestamp * 1000, value: parseValue(e.value), labels: e.labels, series: s.seriesLabels })),
            )
            .slice(0, 2000)
        : [],
    [on, data],
  );
  return { exemplars, error };
}
