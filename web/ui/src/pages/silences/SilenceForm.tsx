import { Button, CloseButton, Textarea, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { Link, useLocation } from "wouter";
import type { ManagedAlert } from "../../api/alertmanager";
import { type ApiError, requestJSON } from "../../api/client";
import { useJSON } from "../../api/hooks";
import { LabelList } from "../../components/LabelList";
import { Failure } from "../../components/Loaded";
import { Notice } from "../../components/Notice";
import { Time, useNow } from "../../components/Time";
import { parseDuration } from "../../lib/duration";
import { plural } from "../../lib/format";
import { useSettings, writeStored } from "../../lib/settings";
import { formatTime, parseTime, zoneName } from "../../lib/time";
import pages from "../pages.module.css";
import {
  type Draft,
  durationText,
  emptyMatcher,
  endOf,
  formatMatcher,
  type Operator,
  operatorOf,
  operators,
  postable,
  problemOf,
  withOperator,
} from "./silences";
import css from "./silences.module.css";

/** Where the browser keeps who makes silences. */
export const authorKey = "tocsin.author";

const durations = ["30m", "1h", "4h", "1d", "1w"];

export function SilenceForm({ start }: { start: Draft }) {
  const [draft, setDraft] = useState(start);
  const [tried, setTried] = useState(false);
  const [, navigate] = useLocation();
  const queries = useQueryClient();
  const now = useNow();
  const change = (part: Partial<Draft>) => setDraft((old) => ({ ...old, ...part }));
  const setMatcher = (i: number, part: Partial<(typeof draft.matchers)[number]>) =>
    change({ matchers: draft.matchers.map((m, j) => (i === j ? { ...m, ...part } : m)) });
  const save = useMutation<{ silenceID: string }, ApiError>({
    mutationFn: () => requestJSON("alertmanager/api/v2/silences", { method: "POST", json: postable(draft, Date.now()) }),
    onSuccess: ({ silenceID }) => {
      writeStored(authorKey, draft.createdBy.trim());
      void queries.invalidateQueries();
      navigate(`/silences?id=${silenceID}`, { replace: true });
    },
  });
  const problem = problemOf(draft, now);
  const end = endOf(draft, now);
  return (
    <form
      className={css.form}
      noValidate
      onSubmit={(e) => {
        e.preventDefault();
        setTried(true);
        if (problemOf(draft, Date.now()) === "") save.mutate();
      }}
    >
      <fieldset className={css.set}>
        <legend>Alerts with all of these labels</legend>
        {draft.matchers.map((m, i) => (
          <div key={i} className={css.matcher}>
            <TextInput
              aria-label={`Label ${i + 1}`}
              placeholder="label"
              value={m.name}
              onChange={(e) => setMatcher(i, { name: e.currentTarget.value })}
              autoCapitalize="none"
              spellCheck={false}
            />
            <select
              className={css.operator}
              aria-label={`Operator ${i + 1}`}
              value={operatorOf(m)}
              onChange={(e) => setMatcher(i, withOperator(m, e.currentTarget.value as Operator))}
            >
              {operators.map((o) => (
                <option key={o}>{o}</option>
              ))}
            </select>
            <TextInput
              aria-label={`Value ${i + 1}`}
              placeholder={m.isRegex ? "expression, of the whole value" : "value"}
              value={m.value}
              onChange={(e) => setMatcher(i, { value: e.currentTarget.value })}
              autoCapitalize="none"
              spellCheck={false}
            />
            <CloseButton
              aria-label={`Remove matcher ${i + 1}`}
              disabled={draft.matchers.length === 1}
              onClick={() => change({ matchers: draft.matchers.filter((_, j) => i !== j) })}
            />
          </div>
        ))}
        <button type="button" className={pages.more} onClick={() => change({ matchers: [...draft.matchers, emptyMatcher] })}>
          Add a matcher
        </button>
      </fieldset>
      <fieldset className={css.set}>
        <legend>For how long</legend>
        <div className={css.times}>
          <Text
            label="Duration"
            shown={durationText(draft, now)}
            onChange={(t) => change({ duration: parseDuration(t) || null, endsAt: null })}
          />
          {durations.map((d) => (
            <Button key={d} variant="default" size="xs" onClick={() => change({ duration: parseDuration(d), endsAt: null })}>
              {d}
            </Button>
          ))}
        </div>
        <div className={css.times}>
          <Moment label="Start" value={draft.startsAt} empty="now" onChange={(startsAt) => change({ startsAt })} />
          <Moment label="End" value={draft.endsAt} empty="after the duration" onChange={(endsAt) => change({ endsAt })} />
        </div>
        {end !== null && !Number.isNaN(end) && (
          <span className={pages.hint}>
            It ends at <Time at={end} />.
          </span>
        )}
      </fieldset>
      <TextInput
        label="Author"
        value={draft.createdBy}
        onChange={(e) => change({ createdBy: e.currentTarget.value })}
        autoComplete="username"
      />
      <Textarea label="Comment" value={draft.comment} onChange={(e) => change({ comment: e.currentTarget.value })} />
      {tried && problem && <Notice kind="bad">{problem}</Notice>}
      {save.error && <Failure error={save.error} />}
      <div className={pages.bar}>
        <Button type="submit" loading={save.isPending}>
          {draft.id ? "Save" : "Silence"}
        </Button>
        <Button component={Link} href="/silences" variant="default">
          Cancel
        </Button>
      </div>
      <Preview draft={draft} />
    </form>
  );
}

/** What the server says that the matchers match, so that regular expressions are read as they will be. */
function Preview({ draft }: { draft: Draft }) {
  const filter = draft.matchers.filter((m) => m.name.trim() !== "").map((m) => formatMatcher({ ...m, name: m.name.trim() }));
  const [asked] = useDebouncedValue(filter.join("\n"), 300);
  const alerts = useJSON<ManagedAlert[]>("alertmanager/api/v2/alerts", {
    params: { filter: asked.split("\n") },
    enabled: asked !== "",
    refresh: 10_000,
  });
  // Of other matchers it would be wrong to show anything.
  const found = alerts.isPlaceholderData || asked === "" ? undefined : alerts.data;
  return (
    <section aria-label="Preview" aria-live="polite" className={css.preview}>
      <h2 className={pages.head}>
        {asked === ""
          ? "Matches nothing yet"
          : found
            ? `Matches ${found.length === 0 ? "no alert" : plural(found.length, "alert")} now`
            : alerts.error
              ? "The preview could not be made"
              : "Looking what it matches"}
      </h2>
      {alerts.error && asked !== "" && <Failure error={alerts.error} />}
      {found?.slice(0, 100).map((a) => (
        <div key={a.fingerprint} className={pages.row}>
          <LabelList labels={a.labels} />
          {a.status.silencedBy.length > 0 && <span className={pages.hint}>silenced already</span>}
        </div>
      ))}
      {found && found.length > 100 && <p className={pages.hint}>and {found.length - 100} more</p>}
    </section>
  );
}

/** A field whose text is read when it is left, or by Enter: half of what is typed means something else. */
function Text({
  label,
  shown,
  placeholder,
  onChange,
}: {
  label: string;
  shown: string;
  placeholder?: string;
  onChange: (text: string) => void;
}) {
  const [text, setText] = useState<string | null>(null);
  const commit = () => {
    if (text !== null && text.trim() !== shown) onChange(text.trim());
    setText(null);
  };
  return (
    <TextInput
      label={label}
      value={text ?? shown}
      placeholder={placeholder}
      onChange={(e) => setText(e.currentTarget.value)}
      onBlur={commit}
      onKeyDown={(e) => {
        if (e.key !== "Enter") return;
        e.preventDefault(); // What was typed is to be seen before it is sent.
        commit();
      }}
    />
  );
}

function Moment({
  label,
  value,
  empty,
  onChange,
}: {
  label: string;
  value: number | null;
  empty: string;
  onChange: (v: number | null) => void;
}) {
  const { settings } = useSettings();
  const [typed, setTyped] = useState("");
  const wrong = Number.isNaN(value);
  return (
    <div>
      <Text
        label={`${label} (${zoneName(settings.utc, value && !wrong ? value : undefined)})`}
        shown={wrong ? typed : value === null ? "" : formatTime(value, settings.utc)}
        placeholder={empty}
        onChange={(t) => {
          setTyped(t);
          onChange(t === "" ? null : (parseTime(t, settings.utc) ?? Number.NaN));
        }}
      />
      {wrong && (
        <span className={pages.error} role="alert">
          Write it as 2026-01-31 14:05.
        </span>
      )}
    </div>
  );
}
