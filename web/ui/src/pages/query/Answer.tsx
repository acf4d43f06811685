// What becomes of a question: its answer, what the answer has to say about itself, and what it took.

import { Skeleton, Tooltip } from "@mantine/core";
import type { UseQueryResult } from "@tanstack/react-query";
import type { ApiError } from "../../api/client";
import { Notice } from "../../components/Notice";
import { humanDuration } from "../../lib/duration";
import { formatCount, plural } from "../../lib/format";
import { useSettings } from "../../lib/settings";
import { type Asked, seriesOf } from "./ask";
import css from "./query.module.css";

/** The answer, or what stands in its place. */
export function Answered({ query, children }: { query: UseQueryResult<Asked, ApiError>; children: (a: Asked) => React.ReactNode }) {
  if (query.error) return null; // The notices have it.
  if (!query.data) return <Skeleton height={160} aria-label="The query runs" />;
  return <div style={query.isPlaceholderData ? { opacity: 0.55 } : undefined}>{children(query.data)}</div>;
}

export function Notices({ query }: { query: UseQueryResult<Asked, ApiError> }) {
  const { settings } = useSettings();
  const warnings = settings.warnings && !query.error ? (query.data?.warnings ?? []) : [];
  const infos = settings.infos && !query.error ? (query.data?.infos ?? []) : [];
  if (!query.error && warnings.length + infos.length === 0) return null;
  return (
    <div className={css.notices}>
      {query.error && (
        <Notice kind="bad" title={query.error.type ? `${query.error.type.replaceAll("_", " ")}:` : undefined}>
          {query.error.message}
        </Notice>
      )}
      {warnings.length > 0 && <Notice kind="warn">{warnings.join("\n")}</Notice>}
      {infos.length > 0 && <Notice kind="info">{infos.join("\n")}</Notice>}
    </div>
  );
}

export function Figures({ query }: { query: UseQueryResult<Asked, ApiError> }) {
  const a = query.data;
  if (!a || query.error || query.isPlaceholderData) return <output className={css.stats}>{query.isFetching ? "running…" : ""}</output>;
  const n = seriesOf(a.data).length;
  const what = a.data.resultType === "scalar" || a.data.resultType === "string" ? a.data.resultType : plural(n, "series", "series");
  const { timings, samples } = a.data.stats ?? {};
  const s = (v?: number) => (v === undefined ? "unknown" : humanDuration(v * 1000));
  return (
    <Tooltip
      multiline
      label={
        <>
          {what}, there after {humanDuration(a.took)}
          <br />
          evaluated in {s(timings?.evalTotalTime)}, of which prepared in {s(timings?.queryPreparationTime)}
          <br />
          waited {s(timings?.execQueueTime)} for its turn
          <br />
          {formatCount(samples?.totalQueryableSamples ?? 0)} samples read, {formatCount(samples?.peakSamples ?? 0)} at most in memory
        </>
      }
    >
      <button type="button" className={css.stats}>
        <output>{what}</output> · {humanDuration(Math.round(a.took))}
        {samples?.totalQueryableSamples !== undefined && ` · ${plural(samples.totalQueryableSamples, "sample")}`}
      </button>
    </Tooltip>
  );
}
