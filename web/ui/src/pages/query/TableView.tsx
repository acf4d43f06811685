import { Button, Group } from "@mantine/core";
import { useState } from "react";
import { Empty } from "../../components/Notice";
import { Time } from "../../components/Time";
import { formatCount, formatSeries, formatValue, type Labels, quoteLabelName, quoteString } from "../../lib/format";
import { type QueryData, seriesOf } from "./ask";
import css from "./query.module.css";
import type { Histogram, Series } from "./series";
import { TimeField } from "./TimeField";

export function MomentControls({ value, onChange, range }: { value: number | null; onChange: (v: number | null) => void; range: number }) {
  return (
    <div className={css.controls}>
      <TimeField value={value} onChange={onChange} range={range} label="Evaluated at" />
    </div>
  );
}

// Labels as buttons cost the browser; nobody picks out of thousands.
const plainAbove = 500;
const shownAtFirst = 1000;

export function TableView({ data }: { data: QueryData }) {
  const [all, setAll] = useState(false);
  if (data.resultType === "scalar" || data.resultType === "string") {
    return (
      <table className={css.table}>
        <tbody>
          <tr>
            <td>{data.resultType}</td>
            <td className={css.value}>{data.result[1]}</td>
          </tr>
        </tbody>
      </table>
    );
  }
  const series = seriesOf(data);
  if (series.length === 0) return <Empty>The query is right, and nothing matches it at this time.</Empty>;
  const shown = all ? series : series.slice(0, shownAtFirst);
  return (
    <>
      <table className={css.table}>
        <tbody>
          {shown.map((s, i) => (
            <tr key={i}>
              <td className={css.series}>{shown.length > plainAbove ? formatSeries(s.metric) : <SeriesName labels={s.metric} />}</td>
              <td className={css.value}>
                <Values s={s} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {shown.length < series.length && (
        <Group mt="sm">
          <span className={css.hint}>
            {formatCount(shown.length)} of {formatCount(series.length)} series
          </span>
          <Button size="xs" variant="default" onClick={() => setAll(true)}>
            Show all
          </Button>
        </Group>
      )}
    </>
  );
}

/** A click on a label copies its matcher. */
export function SeriesName({ labels }: { labels: Labels }) {
  const { __name__: name, ...rest } = labels;
  const pairs = Object.entries(rest);
  return (
    <>
      {name && <span className={css.name}>{name}</span>}
      {(pairs.length > 0 || !name) && "{"}
      {pairs.map(([k, v], i) => (
        <span key={k}>
          <button
            type="button"
            title="Copy this matcher"
            onClick={() => void navigator.clipboard?.writeText(`${quoteLabelName(k)}=${quoteString(v)}`)}
          >
            <span className={css.labelName}>{k}</span>=<span className={css.labelValue}>"{v}"</span>
          </button>
          {i < pairs.length - 1 && ", "}
        </span>
      ))}
      {(pairs.length > 0 || !name) && "}"}
    </>
  );
}

function Values({ s }: { s: Series }) {
  if (s.value) return <>{s.value[1]}</>;
  if (s.histogram) return <HistogramValue h={s.histogram[1]} />;
  return (
    <>
      {[...(s.values ?? [])].map(([t, v]) => (
        <div key={t}>
          {v} @ <Time at={t * 1000} millis />
        </div>
      ))}
      {(s.histograms ?? []).map(([t, h]) => (
        <div key={t}>
          <HistogramValue h={h} /> @ <Time at={t * 1000} millis />
        </div>
      ))}
    </>
  );
}

const barWidth = "min(120px, 15vw)";

/** A native histogram: its buckets as bars, with their bounds. */
function HistogramValue({ h }: { h: Histogram }) {
  const buckets = h.buckets ?? [];
  const most = Math.max(...buckets.map((b) => Number(b[3])), 0);
  const signs = ["(]", "[)", "()", "[]"];
  return (
    <details>
      <summary>
        count {h.count}, sum {h.sum}
      </summary>
      <table>
        <tbody>
          {buckets.map(([kind, from, to, count]) => (
            <tr key={`${from} ${to}`}>
              {/* The bounds are powers of roots of two. */}
              <td title={`${from} to ${to}`} style={{ textAlign: "left", border: 0, padding: "0 0.5rem 0 0" }}>
                {signs[kind]?.[0]}
                {formatValue(from)}, {formatValue(to)}
                {signs[kind]?.[1]}
              </td>
              <td style={{ border: 0, padding: 0 }}>
                <div style={{ width: barWidth }}>
                  <div style={{ height: 8, background: "var(--info)", width: `${most > 0 ? (Number(count) / most) * 100 : 0}%` }} />
                </div>
              </td>
              <td style={{ border: 0, padding: "0 0 0 0.5rem" }}>{count}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </details>
  );
}
