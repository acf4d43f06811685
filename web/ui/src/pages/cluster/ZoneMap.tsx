import type { Cluster, Member } from "../../api/types";
import { humanDuration } from "../../lib/duration";
import { zoneWords } from "../../lib/format";
import { toMs } from "../../lib/time";
import css from "./cluster.module.css";
import { clockWords, cutText, layoutMap, mapWords, memberState, zoneDistance, zonesOf } from "./model";
import { Wide } from "./Wide";

/** Zones with their replicas on one trunk, with the time from here and back at each. The list below it says the same. */
export function ZoneMap({ cluster, now, since }: { cluster: Cluster; now: number; since: Map<string, string | undefined> }) {
  const zones = zonesOf(cluster.members);
  return (
    <Wide>
      {(width) => {
        const l = layoutMap(zones, width - 2);
        return (
          <svg role="img" aria-label={mapWords(cluster)} width={width} height={l.height + 2} className={css.svg}>
            {l.trunks.map((t, i) => (
              <g key={t.y}>
                <line className={css.wire} x1={t.x1} x2={t.x2} y1={t.y} y2={t.y} />
                {i > 0 && <line className={css.wire} x1={t.x1} x2={t.x1} y1={l.trunks[i - 1]!.y} y2={t.y} strokeDasharray="2 4" />}
              </g>
            ))}
            {l.zones.map((z) => {
              const reached = z.zone.members.some((m) => m.alive);
              const far = zoneDistance(z.zone);
              const mid = z.x + z.w / 2;
              return (
                <g key={z.zone.name}>
                  <line className={`${css.wire} ${reached ? "" : css.cut}`} x1={mid} x2={mid} y1={z.trunk} y2={z.y} />
                  {far && (
                    <text x={mid + 8} y={z.y - 10} className={css.soft}>
                      {far}
                    </text>
                  )}
                  {!reached && (
                    <text x={mid + 8} y={z.y - 10} className={css.goneText}>
                      not reached
                    </text>
                  )}
                  <rect className={css.zone} x={z.x + 1} y={z.y} width={z.w} height={z.h} rx={8} />
                  <text x={z.x + 12} y={z.y + 20} className={css.zoneName}>
                    {z.zone.name ? cutText(zoneWords(z.zone.name), z.w - 24, 7.6) : "no zone"}
                  </text>
                  {z.nodes.map((n) => (
                    <Node key={n.member.name} m={n.member} x={n.x + 1} y={n.y} w={n.w} h={n.h} now={now} since={since.get(n.member.name)} />
                  ))}
                </g>
              );
            })}
          </svg>
        );
      }}
    </Wide>
  );
}

function Node({ m, x, y, w, h, now, since }: { m: Member; x: number; y: number; w: number; h: number; now: number; since?: string }) {
  const state = memberState(m);
  const began = toMs(since);
  const word = `${state}${began === null ? "" : ` for ${humanDuration(Math.max(0, now - began))}`}`;
  const second = [m.self && "this one", word].filter(Boolean).join(", ");
  const third = [m.version && `version ${m.version}`, m.alive && m.completeness < 1 && "not whole"].filter(Boolean).join(", ");
  const fourth = m.alive
    ? [!m.self && m.rtt_seconds > 0 && humanDuration(m.rtt_seconds * 1000), clockWords(m)].filter(Boolean).join(", ")
    : "";
  const room = w - 20;
  return (
    <g>
      <rect className={`${css.node} ${m.self ? css.self : ""}`} x={x} y={y} width={w} height={h} rx={6} />
      <Mark state={state} x={x + 16} y={y + 17} />
      <text x={x + 28} y={y + 22} className={css.name}>
        {cutText(m.name, room - 18, 8.4)}
      </text>
      <text x={x + 10} y={y + 39} className={state === "gone" ? css.goneText : undefined}>
        {cutText(second, room)}
      </text>
      <text x={x + 10} y={y + 54} className={css.soft}>
        {cutText(third, room)}
      </text>
      <text x={x + 10} y={y + 69} className={css.soft}>
        {cutText(fourth, room)}
      </text>
    </g>
  );
}

/** A full circle, an empty square, a cross: states that differ without colour. */
function Mark({ state, x, y }: { state: ReturnType<typeof memberState>; x: number; y: number }) {
  if (state === "alive") return <circle className={css.alive} cx={x} cy={y} r={5} />;
  if (state === "stopped") return <rect className={css.stopped} x={x - 4.5} y={y - 4.5} width={9} height={9} />;
  return <path className={css.gone} d={`M${x - 5} ${y - 5}l10 10m0 -10l-10 10`} />;
}
