import type { Gaps } from "../../api/types";
import { useSettings } from "../../lib/settings";
import { formatTime } from "../../lib/time";
import css from "./cluster.module.css";
import { cutText, type GapRow, gapWords, type Segment, timelineWords, timeTicks } from "./model";
import { Wide } from "./Wide";

/** At most so many rows: a zone that was cut off has thousands. The list has them all. */
const mostRows = 25;

export function GapTimeline({ rows, all, from, to, range }: { rows: GapRow[]; all: Gaps; from: number; to: number; range: string }) {
  const { settings } = useSettings();
  const shown = rows.slice(0, mostRows);
  const gaps = rows.flatMap((r) => r.bars.map((b) => b.gap));
  return (
    <Wide>
      {(width) => {
        const narrow = width < 640;
        const left = narrow ? 0 : 190;
        const rowHeight = narrow ? 40 : 24;
        const w = width - left - 2;
        const height = Math.max(1, shown.length) * rowHeight;
        return (
          <svg role="img" aria-label={timelineWords(gaps, range)} width={width} height={height + 24} className={css.svg}>
            <Axis x={left} w={w} from={from} to={to} height={height} utc={settings.utc} />
            {shown.length === 0 && <rect className={css.track} x={left} y={4} width={w} height={16} rx={3} />}
            {shown.map((r, i) => {
              const y = i * rowHeight + (narrow ? 18 : 4);
              return (
                <g key={`${r.kind} ${r.what}`}>
                  <text x={0} y={narrow ? y - 5 : y + 12}>
                    {cutText(r.what, narrow ? width : left - 10)}
                  </text>
                  <rect className={css.track} x={left} y={y} width={w} height={16} rx={3} />
                  {r.bars.map((b) => {
                    const x = left + b.a * w;
                    const length = Math.max(4, (b.b - b.a) * w);
                    return (
                      <g key={b.gap.id}>
                        <title>{gapWords(b.gap, all)}</title>
                        <rect className={css[b.gap.state]} x={Math.min(x, left + w - length)} y={y + 2} width={length} height={12} rx={2} />
                        {/* What is filled already, low: the rest stays high, so that progress is seen without colour. */}
                        {b.gap.state === "open" && b.filled > 0 && (
                          <rect className={css.healed} x={x} y={y + 2} width={Math.max(2, length * b.filled)} height={12} rx={2} />
                        )}
                      </g>
                    );
                  })}
                </g>
              );
            })}
          </svg>
        );
      }}
    </Wide>
  );
}

const segmentClass = { whole: css.whole, "not whole": css.partly, missing: css.lost };

export function CoverageTimeline({ segments, label }: { segments: Segment[]; label: string }) {
  const { settings } = useSettings();
  const from = segments[0]!.from;
  const to = segments[segments.length - 1]!.to;
  return (
    <Wide>
      {(width) => {
        const w = width - 2;
        const x = (t: number) => ((t - from) / (to - from)) * w;
        return (
          <svg role="img" aria-label={label} width={width} height={48} className={css.svg}>
            <Axis x={0} w={w} from={from} to={to} height={24} utc={settings.utc} />
            {segments.map((s) => {
              const low = s.state === "whole" ? 0 : s.state === "not whole" ? 6 : 3;
              return (
                <rect
                  key={s.from}
                  className={segmentClass[s.state]}
                  x={x(s.from)}
                  y={4 + low}
                  width={Math.max(2, x(s.to) - x(s.from) - 0.5)}
                  height={16 - low - (s.state === "missing" ? 3 : 0)}
                >
                  <title>{`${s.windows} windows ${s.state}`}</title>
                </rect>
              );
            })}
          </svg>
        );
      }}
    </Wide>
  );
}

function Axis({ x, w, from, to, height, utc }: { x: number; w: number; from: number; to: number; height: number; utc: boolean }) {
  const offset = utc ? 0 : -new Date(to).getTimezoneOffset() * 60_000;
  const days = to - from > 2 * 86_400_000;
  return (
    <>
      {timeTicks(from, to, Math.max(2, Math.floor(w / 110)), offset).map((t) => {
        const at = x + ((t - from) / (to - from)) * w;
        const text = days ? formatTime(t, utc).slice(5, 10) : formatTime(t, utc).slice(11, 16);
        return (
          <g key={t}>
            <line className={css.grid} x1={at} x2={at} y1={0} y2={height + 4} />
            <text className={css.soft} x={Math.min(Math.max(at, x + 16), x + w - 18)} y={height + 18} textAnchor="middle">
              {text}
            </text>
          </g>
        );
      })}
    </>
  );
}
