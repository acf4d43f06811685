// The graph on its canvas, with what a canvas does not have: a summary in words, a legend of buttons, a table to go to.

import { Anchor, useComputedColorScheme } from "@mantine/core";
import { useEffect, useMemo, useRef, useState } from "react";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { formatSeries, formatShort, type Labels } from "../../lib/format";
import { useSettings } from "../../lib/settings";
import { formatTime, zoneName } from "../../lib/time";
import css from "./query.module.css";
import { align, lost, type Series, type Stretch, stack, summarize } from "./series";
import { alone, thin, widened } from "./thin";

export interface Exemplar {
  time: number;
  value: number;
  labels: Labels;
  series: Labels;
}

interface Props {
  series: Series[];
  start: number;
  end: number;
  step: number;
  stacked: boolean;
  log: boolean;
  yMin: number | null;
  stretches: Stretch[];
  exemplars: Exemplar[];
  onZoom: (from: number, to: number) => void;
  onAsTable: () => void;
}

const palette = {
  light: ["#3b5bc4", "#c2410c", "#15803d", "#a21caf", "#0e7490", "#b45309", "#be123c", "#4d7c0f"],
  dark: ["#8ea6ff", "#fb923c", "#4ade80", "#e879f9", "#22d3ee", "#fbbf24", "#fb7185", "#a3e635"],
};
// From the ninth on, colours come again, with other dashes.
const dashes = [undefined, [8, 4], [2, 3], [10, 3, 2, 3]];
const fills = {
  light: { open: "rgb(179 38 30 / 0.14)", healed: "rgb(56 75 158 / 0.10)", lost: "rgb(76 85 99 / 0.18)" },
  dark: { open: "rgb(255 144 135 / 0.20)", healed: "rgb(169 185 245 / 0.14)", lost: "rgb(179 186 200 / 0.20)" },
};
const stateWords = { open: "still missing here", healed: "healed", lost };

export default function Chart({ series, start, end, step, stacked, log, yMin, stretches, exemplars, onZoom, onAsTable }: Props) {
  const { settings } = useSettings();
  const scheme = useComputedColorScheme("light");
  const box = useRef<HTMLDivElement>(null);
  const tip = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot>(null);
  const names = useMemo(() => series.map((s) => formatSeries(s.metric)), [series]);
  const [hidden, setHidden] = useState<ReadonlySet<string>>(new Set());
  const { times, columns } = useMemo(() => align(series, start, end, step), [series, start, end, step]);
  const shown = useMemo(() => names.map((n) => !hidden.has(n)), [names, hidden]);
  // Only on a stack do the others move when one is hidden.
  const stackOf = stacked ? shown : undefined;
  const drawn = useMemo(() => {
    const c = stackOf ? stack(columns, (i) => stackOf[i]!) : columns;
    return log ? c.map((col) => col.map((v) => (v <= 0 ? Number.NaN : v))) : c;
  }, [columns, stackOf, log]);
  const colour = (i: number) => palette[scheme][i % palette[scheme].length]!;
  const zoom = useRef(onZoom);
  zoom.current = onZoom;
  // Shading and exemplars come after the lines, and anew; only the canvas is drawn again for them.
  const overlay = useRef({ stretches, exemplars });
  overlay.current = { stretches, exemplars };
  // biome-ignore lint/correctness/useExhaustiveDependencies: they are what changed
  useEffect(() => plot.current?.redraw(false, false), [stretches, exemplars]);
  const visible = useRef(shown);
  visible.current = shown;
  const summary = useMemo(() => summarize(names, columns, formatShort), [names, columns]);

  // biome-ignore lint/correctness/useExhaustiveDependencies: colour follows the scheme, and what is shown of lines is set below
  useEffect(() => {
    const root = box.current!;
    const style = getComputedStyle(root);
    const dim = style.getPropertyValue("--mantine-color-dimmed").trim();
    const line = style.getPropertyValue("--line").trim();
    const font = `11px ${style.fontFamily}`;
    const utc = settings.utc;
    const nearestExemplar = (u: uPlot): Exemplar | undefined => {
      const { left = -1, top = -1 } = u.cursor;
      let best: Exemplar | undefined;
      let d = 10;
      for (const e of overlay.current.exemplars) {
        const dx = u.valToPos(e.time / 1000, "x") - left;
        const dy = u.valToPos(e.value, "y") - top;
        const away = Math.hypot(dx, dy);
        if (away < d) {
          d = away;
          best = e;
        }
      }
      return best;
    };
    const n = times.length;
    const showTip = (u: uPlot) => {
      const t = tip.current!;
      const { left = -1, top = -1 } = u.cursor;
      if (left < 0 || n === 0) {
        t.style.display = mark.style.display = "none";
        return;
      }
      // The sample that is nearest to the pointer, of those that were asked for and not of what was drawn of them: many fall into
      // one column of pixels.
      const stepWidth = u.valToPos(step / 1000, "x") - u.valToPos(0, "x");
      const zero = u.valToPos(times[0]!, "x");
      const index = (x: number) => Math.max(0, Math.min(n - 1, Math.round((x - zero) / stepWidth)));
      let best = -1;
      let at = index(left);
      let d = Number.POSITIVE_INFINITY;
      for (let i = index(left - 2), to = index(left + 2); i <= to; i++) {
        const dx = zero + i * stepWidth - left;
        for (let s = 0; s < drawn.length; s++) {
          if (!visible.current[s]) continue;
          const away = Math.hypot(dx, u.valToPos(drawn[s]![i]!, "y") - top);
          if (away < d) {
            d = away;
            best = s;
            at = i;
          }
        }
      }
      const pointed = u.posToVal(left, "x") * 1000;
      const lines: [string, string?][] = [];
      const exemplar = nearestExemplar(u);
      if (exemplar) {
        lines.push([`${formatTime(exemplar.time, utc, true)} ${zoneName(utc, exemplar.time)}`]);
        lines.push([`exemplar ${exemplar.value} ${formatSeries(exemplar.labels)}`]);
        lines.push([formatSeries(exemplar.series)]);
      } else {
        const ms = Math.round(times[at]! * 1000);
        lines.push([`${formatTime(ms, utc)} ${zoneName(utc, ms)}`]);
        if (best >= 0) lines.push([`${columns[best]![at]}`, colour(best)], [names[best]!]);
      }
      mark.style.display = best >= 0 && !exemplar ? "block" : "none";
      if (best >= 0) {
        mark.style.background = colour(best);
        mark.style.transform = `translate(${u.valToPos(times[at]!, "x")}px, ${u.valToPos(drawn[best]![at]!, "y")}px)`;
      }
      for (const s of overlay.current.stretches) if (s.from <= pointed && pointed <= s.to) lines.push([s.text]);
      t.replaceChildren(
        ...lines.map(([text, c], i) => {
          const div = document.createElement("div");
          if (c) {
            const swatch = document.createElement("span");
            swatch.className = css.swatch!;
            swatch.style.borderTopColor = c;
            swatch.style.marginRight = "6px";
            const b = document.createElement("b");
            b.textContent = text;
            div.append(swatch, b);
          } else {
            div.textContent = text;
            if (i === 0) div.style.color = dim;
          }
          return div;
        }),
      );
      t.style.display = "block";
      const x = left + u.bbox.left / devicePixelRatio;
      const right = x > root.clientWidth / 2;
      t.style.left = right ? "" : `${x + 14}px`;
      t.style.right = right ? `${root.clientWidth - x + 14}px` : "";
      t.style.top = `${Math.max(0, Math.min(top, u.height - 90))}px`;
    };
    // Each fills down to the one below it.
    const layers = names.map((_, i) => i + 1).filter((i) => shown[i - 1]);
    const bands: uPlot.Band[] = stacked ? layers.slice(1).map((i, n) => ({ series: [i, layers[n]!] })) : [];
    // Fine details cost most where nobody can see them: several points in each column of pixels.
    const dense = times.length > 2 * root.clientWidth;
    const data = (): uPlot.AlignedData => {
      const d = thin(times, drawn, root.clientWidth);
      return [d.times, ...d.columns];
    };
    let width = root.clientWidth;
    const first = data();
    const many = first[0].length * names.length > 100_000;
    const options: uPlot.Options = {
      bands,
      width: root.clientWidth,
      height: 340,
      padding: [10, 8, 0, 0],
      legend: { show: false },
      cursor: { drag: { x: true, y: false, setScale: false, dist: 4 }, points: { show: false }, focus: { prox: many ? -1 : 30 } },
      focus: { alpha: 0.35 },
      scales: {
        x: { time: true, range: () => [start / 1000, end / 1000] },
        y: log
          ? { distr: 3 }
          : {
              range: (_u, min, max) => {
                if (min === null || max === null) return [0, 1];
                const low = yMin ?? (stacked ? Math.min(0, min) : min);
                return uPlot.rangeNum(Math.min(low, max), max === low ? low + (Math.abs(low) || 1) : max, {
                  min: { pad: yMin !== null ? 0 : 0.08, soft: yMin ?? 0, mode: yMin !== null ? 1 : stacked ? 1 : 3 },
                  max: { pad: 0.08, soft: 0, mode: 3 },
                });
              },
            },
      },
      tzDate: (ts) => (utc ? uPlot.tzDate(new Date(ts * 1000), "Etc/UTC") : new Date(ts * 1000)),
      axes: [
        {
          stroke: dim,
          font,
          grid: { stroke: line, width: 1 },
          ticks: { stroke: line, width: 1, size: 4 },
          // 24 hours, and dates that everybody reads.
          values: [
            [3600 * 24 * 365, "{YYYY}", null, null, null, null, null, null, 1],
            [3600 * 24 * 28, "{YYYY}-{MM}", null, null, null, null, null, null, 1],
            [3600 * 24, "{MM}-{DD}", "\n{YYYY}", null, null, null, null, null, 1],
            [60, "{HH}:{mm}", "\n{YYYY}-{MM}-{DD}", null, null, null, null, null, 1],
            [1, "{HH}:{mm}:{ss}", "\n{YYYY}-{MM}-{DD}", null, null, null, null, null, 1],
            [0.001, "{HH}:{mm}:{ss}.{fff}", "\n{YYYY}-{MM}-{DD}", null, null, null, null, null, 1],
          ],
        },
        {
          stroke: dim,
          font,
          grid: { stroke: line, width: 1 },
          ticks: { show: false },
          values: (_u, splits) => splits.map((v) => (v === null ? "" : formatShort(v))),
          size: (_u, values) => Math.max(44, ...(values ?? []).map((v) => 14 + (v?.length ?? 0) * 7)),
        },
      ],
      series: [
        {},
        ...names.map((n, i) => ({
          label: n,
          show: shown[i]!,
          stroke: colour(i),
          width: dense ? 1 : 1.5,
          dash: dense ? undefined : dashes[Math.floor(i / palette[scheme].length) % dashes.length],
          fill: stacked ? `${colour(i)}59` : undefined,
          points: { show: times.length < 2, filter: (u: uPlot, s: number, show: boolean) => (show ? null : alone(u.data[s]!)) },
          spanGaps: false,
          gaps: (_u: uPlot, _s: number, _from: number, _to: number, gaps: uPlot.Series.Gap[]) => widened(gaps, 2 * devicePixelRatio),
        })),
      ],
      hooks: {
        drawClear: [
          (u) => {
            const { ctx, bbox } = u;
            ctx.save();
            for (const s of overlay.current.stretches) {
              const a = Math.max(bbox.left, u.valToPos(s.from / 1000, "x", true));
              const b = Math.min(bbox.left + bbox.width, u.valToPos(s.to / 1000, "x", true));
              ctx.fillStyle = fills[scheme][s.state];
              // Never less than what can be seen.
              ctx.fillRect(a, bbox.top, Math.max(b - a, 2 * devicePixelRatio), bbox.height);
            }
            ctx.restore();
          },
        ],
        draw: [
          (u) => {
            const { ctx } = u;
            const r = 4 * devicePixelRatio;
            ctx.save();
            ctx.fillStyle = colour(5);
            for (const e of overlay.current.exemplars) {
              const x = u.valToPos(e.time / 1000, "x", true);
              const y = u.valToPos(e.value, "y", true);
              if (y < u.bbox.top || y > u.bbox.top + u.bbox.height) continue;
              ctx.beginPath();
              ctx.moveTo(x, y - r);
              ctx.lineTo(x + r, y);
              ctx.lineTo(x, y + r);
              ctx.lineTo(x - r, y);
              ctx.fill();
            }
            ctx.restore();
          },
        ],
        setCursor: [showTip],
        setSelect: [
          (u) => {
            if (u.select.width > 4)
              zoom.current(u.posToVal(u.select.left, "x") * 1000, u.posToVal(u.select.left + u.select.width, "x") * 1000);
            u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          },
        ],
      },
    };
    const u = new uPlot(options, first, root);
    const mark = document.createElement("div");
    mark.className = css.mark!;
    mark.style.display = "none";
    u.over.append(mark);
    plot.current = u;
    const resized = new ResizeObserver(() => {
      if (root.clientWidth === width) return;
      width = root.clientWidth;
      u.batch(() => {
        u.setSize({ width, height: 340 });
        u.setData(data());
      });
    });
    resized.observe(root);
    return () => {
      resized.disconnect();
      u.destroy();
    };
  }, [times, drawn, names, stacked, log, yMin, scheme, settings.utc, start, end, step]);
  useEffect(() => {
    const u = plot.current!;
    u.batch(() => {
      for (const [i, show] of shown.entries()) if (u.series[i + 1]?.show !== show) u.setSeries(i + 1, { show });
    });
  }, [shown]);

  // A click shows one alone, and all again; with Ctrl or Cmd it hides or shows that one.
  const pick = (name: string, toggle: boolean) => {
    setHidden((old) => {
      if (toggle) {
        const next = new Set(old);
        if (!next.delete(name)) next.add(name);
        return next;
      }
      const alone = names.every((n) => (n === name) === !old.has(n));
      return alone ? new Set() : new Set(names.filter((n) => n !== name));
    });
  };
  const states = [...new Set(stretches.map((s) => s.state))];
  const from = [...new Set(stretches.filter((s) => s.state === "healed").map((s) => s.text))];
  const legend = names.slice(0, 200);
  return (
    <>
      <div
        role="img"
        aria-label={`Graph from ${formatTime(start, settings.utc)} to ${formatTime(end, settings.utc)} ${zoneName(settings.utc, end)}. ${summary}`}
      >
        <div ref={box} className={css.chart}>
          <div ref={tip} className={css.tip} style={{ display: "none" }} />
        </div>
      </div>
      {states.length > 0 && (
        <p className={css.hint} style={{ margin: "0.25rem 0" }}>
          {states.map((s) => (
            <span key={s} style={{ marginRight: "1em" }}>
              <span className={css.patch} style={{ background: fills[scheme][s], outline: "1px solid var(--line)" }} />
              {s === "healed" && from.length > 0 && from.length < 4 ? from.join(", ") : stateWords[s]}
            </span>
          ))}
        </p>
      )}
      <div className={css.legend} role="group" aria-label="Series">
        {legend.map((n, i) => (
          <button
            type="button"
            key={n}
            aria-pressed={shown[i]}
            title={n}
            onClick={(e) => pick(n, e.ctrlKey || e.metaKey)}
            onMouseEnter={() => plot.current?.setSeries(i + 1, { focus: true })}
            onMouseLeave={() => plot.current?.setSeries(null, { focus: false })}
          >
            <span
              className={css.swatch}
              style={{ borderTopColor: colour(i), borderTopStyle: i >= palette[scheme].length ? "dashed" : "solid" }}
            />
            <span>{n}</span>
          </button>
        ))}
      </div>
      <p className={css.hint} style={{ margin: "0.375rem 0 0" }}>
        {names.length > legend.length && `The legend has the first ${legend.length} of ${names.length} series. `}
        {names.length > 1 && "Click a series to see it alone, with Ctrl or Cmd to hide it. "}Drag over the graph to zoom.{" "}
        <Anchor component="button" type="button" fz="inherit" onClick={onAsTable}>
          Show as a table
        </Anchor>
      </p>
    </>
  );
}
