import { Progress } from "@mantine/core";
import { useState } from "react";
import { useJSON } from "../../api/hooks";
import type { Status } from "../../api/status";
import { Loaded } from "../../components/Loaded";
import { type Kind, Notice, State } from "../../components/Notice";
import { Ago, Time } from "../../components/Time";
import { humanDuration } from "../../lib/duration";
import { formatBytes, formatCount, plural } from "../../lib/format";
import pageCSS from "../pages.module.css";
import css from "./cluster.module.css";
import { coverage } from "./model";
import { CoverageTimeline } from "./Timeline";

interface Upload {
  begin: number;
  end: number;
  state: "waiting-for-turn" | "waiting-for-healing" | "staging" | "uploading" | "covered" | "failed";
  since: string;
  by?: string;
  block?: string;
  problem?: string;
  done_bytes?: number;
  total_bytes?: number;
}

interface Reason {
  block: string;
  reason: string;
  since?: string;
}

interface Bucket {
  provider: string;
  name: string;
  looked?: string;
  problem?: string;
  blocks: number;
  partial_blocks: number;
  blocks_by_state: Record<string, number>;
  bytes: number;
  samples: number;
  bytes_per_sample: number;
  coverage: { whole: number; not_whole: number; missing: number; gaps: { from: number; to: number; windows: number }[] };
  quarantine: Reason[];
  left_out: Reason[];
  upload: { backlog: number; windows: Upload[]; running: Upload[] };
  compaction: {
    todo_compactions: number;
    todo_downsampling: number;
    running?: { work: string; phase: string; began: string; blocks: string[]; bytes: number; series: number; series_max: number };
    last?: { work: string; ended: string; blocks: string[]; err?: string };
    waiting: Reason[] | null;
    marked_for_deletion: Reason[] | null;
    err?: string;
  };
  windows: { begin: number; end: number; whole: boolean; by?: string }[];
}

const uploadWords: Record<Upload["state"], [string, Kind]> = {
  "waiting-for-turn": ["waits for its turn", "quiet"],
  "waiting-for-healing": ["waits to be healed", "quiet"],
  staging: ["is being prepared", "info"],
  uploading: ["is being uploaded", "info"],
  covered: ["is in the bucket", "well"],
  failed: ["failed, and is tried again", "bad"],
};

/** So many blocks are listed until more are asked for: some are always waiting to be deleted. */
const mostReasons = 5;

/** Of the windows that are done, so many: the rest is in the drawing. */
const mostDone = 6;

export function BucketSection() {
  const status = useJSON<Status>("api/tocsin/v1/status", { refresh: 10_000 });
  const none = status.data?.bucket === false;
  const bucket = useJSON<Bucket>("api/tocsin/v1/bucket", { refresh: 15_000, enabled: status.data !== undefined && !none });
  return (
    <section className={css.section} aria-label="Bucket">
      <h2 className={pageCSS.head}>Bucket</h2>
      {none ? (
        <p>
          This replica has no bucket: its data are on its own disk, for as long as its retention says. A section <code>bucket</code> in the
          configuration keeps them in object storage too.
        </p>
      ) : (
        <Loaded query={bucket}>{(b) => <Known b={b} />}</Loaded>
      )}
    </section>
  );
}

function Known({ b }: { b: Bucket }) {
  const segments = coverage(b.windows);
  const { whole, not_whole, missing } = b.coverage;
  const w = b.windows[0];
  const said = !w
    ? "No window of data is there yet: each two hours are uploaded about an hour after their end."
    : `${plural(whole, "window")} of ${humanDuration(w.end - w.begin)} ${whole === 1 ? "is" : "are"} there whole, ${formatCount(not_whole)} with something missing; ${formatCount(missing)} in between ${missing === 1 ? "is" : "are"} not there.`;
  const waiting = b.upload.windows.filter((w) => w.state !== "covered");
  const done = b.upload.windows.filter((w) => w.state === "covered").slice(-mostDone);
  const c = b.compaction;
  return (
    <>
      {b.problem && <Notice kind="bad">{b.problem}</Notice>}
      <p>
        <code>{b.name}</code>, {b.provider};{" "}
        {b.looked ? (
          <>
            listed <Ago at={b.looked} />
          </>
        ) : (
          "not listed yet"
        )}
        . {plural(b.blocks, "block")}
        {b.blocks > 0 && `, ${formatBytes(b.bytes)}, ${formatCount(b.samples)} samples`}
        {b.bytes_per_sample > 0 && `, ${b.bytes_per_sample.toFixed(2)} bytes each`}
        {b.partial_blocks > 0 && `; ${plural(b.partial_blocks, "upload")} under way or cut off`}.
      </p>
      <p>{said}</p>
      {segments.length > 0 && (
        <>
          <CoverageTimeline segments={segments} label={`Windows in the bucket. ${said}`} />
          <div className={css.legend}>
            <Key name={css.whole!}>whole</Key>
            <Key name={css.partly!}>something missing (lower)</Key>
            <Key name={css.lost!}>not there (outline)</Key>
          </div>
        </>
      )}
      {b.coverage.gaps.slice(-10).map((g) => (
        <div key={g.from} className={pageCSS.row}>
          <span>
            Not there: <Time at={g.from} /> to <Time at={g.to} />, {plural(g.windows, "window")}
          </span>
        </div>
      ))}
      <h3 className={pageCSS.head}>
        Uploads{" "}
        <span className={pageCSS.hint}>
          {b.upload.backlog === 0 ? "nothing waits" : `${plural(b.upload.backlog, "window")} not there yet`}
        </span>
      </h3>
      {b.upload.windows.length === 0 && <p>This replica has no finished window yet.</p>}
      {[...waiting, ...done].map((u) => (
        <UploadRow key={u.begin} u={u} />
      ))}
      <h3 className={pageCSS.head}>Compaction</h3>
      {c.err && <Notice kind="bad">{c.err}</Notice>}
      <p>
        {c.running ? (
          <>
            This replica is at {c.running.work} of {plural(c.running.blocks.length, "block")}, {formatBytes(c.running.bytes)}:{" "}
            {c.running.phase}, since <Time at={c.running.began} />.
          </>
        ) : (
          "This replica compacts nothing now."
        )}{" "}
        To do: {plural(c.todo_compactions, "compaction")}, {plural(c.todo_downsampling, "downsampling")}.{" "}
        {c.last && (
          <>
            The last one, {c.last.work} of {plural(c.last.blocks.length, "block")}, ended <Ago at={c.last.ended} />
            {c.last.err ? `: ${c.last.err}` : "."}
          </>
        )}
      </p>
      {c.running && c.running.series_max > 0 && (
        <Progress value={(100 * c.running.series) / c.running.series_max} aria-label="Series compacted" maw={480} m={4} />
      )}
      <Reasons title="Broken, and left alone" list={b.quarantine} />
      <Reasons title="Left out of queries for a while" list={b.left_out} />
      <Reasons title="Waits to be compacted" list={c.waiting} />
      <Reasons title="To be deleted" list={c.marked_for_deletion} />
    </>
  );
}

export function Key({ name, children }: { name: string; children: string }) {
  return (
    <span>
      <svg width={14} height={11} aria-hidden>
        <rect className={name} x={1} y={1} width={12} height={9} rx={1} />
      </svg>
      {children}
    </span>
  );
}

function UploadRow({ u }: { u: Upload }) {
  const [word, kind] = uploadWords[u.state] ?? [u.state, "quiet"];
  return (
    <div className={pageCSS.row}>
      <div className={pageCSS.line}>
        <span className={pageCSS.grow}>
          <Time at={u.begin} /> to <Time at={u.end} />
        </span>
        <State kind={kind}>
          {word}
          {u.by && `, by ${u.by}`}
        </State>
        <span className={pageCSS.hint}>
          <Ago at={u.since} />
        </span>
      </div>
      {(u.total_bytes ?? 0) > 0 && (
        <Progress
          value={(100 * (u.done_bytes ?? 0)) / u.total_bytes!}
          aria-label={`Uploaded of ${formatBytes(u.total_bytes!)}`}
          maw={480}
        />
      )}
      {u.problem && <span className={pageCSS.error}>{u.problem}</span>}
    </div>
  );
}

function Reasons({ title, list }: { title: string; list: Reason[] | null }) {
  const [most, setMost] = useState(mostReasons);
  if (!list || list.length === 0) return null;
  return (
    <>
      <h3 className={pageCSS.head}>
        {title} <span className={pageCSS.hint}>{plural(list.length, "block")}</span>
      </h3>
      {list.slice(0, most).map((r) => (
        <div key={r.block} className={pageCSS.row}>
          <code>{r.block}</code>
          <span className={pageCSS.hint}>
            {r.reason}
            {r.since && (
              <>
                , since <Time at={r.since} />
              </>
            )}
          </span>
        </div>
      ))}
      {list.length > most && (
        <button type="button" className={pageCSS.more} onClick={() => setMost(most * 10)}>
          Show more
        </button>
      )}
    </>
  );
}
