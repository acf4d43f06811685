import { ActionIcon, CloseButton, TextInput } from "@mantine/core";
import { IconCalendar, IconChevronLeft, IconChevronRight } from "@tabler/icons-react";
import { useEffect, useRef, useState } from "react";
import { useSettings } from "../../lib/settings";
import { formatTime, parseTime, zoneName } from "../../lib/time";
import css from "./query.module.css";

/** A moment, or now; with steps of half the range. */
export function TimeField({
  value,
  onChange,
  range,
  label,
}: {
  value: number | null;
  onChange: (v: number | null) => void;
  range: number;
  label: string;
}) {
  const { settings } = useSettings();
  const shown = value === null ? "" : formatTime(value, settings.utc);
  const [text, setText] = useState(shown);
  const [wrong, setWrong] = useState(false);
  useEffect(() => {
    setText(shown);
    setWrong(false);
  }, [shown]);
  const commit = () => {
    if (text === shown) return;
    const t = text.trim() === "" ? null : parseTime(text, settings.utc);
    if (text.trim() !== "" && t === null) setWrong(true);
    else onChange(t);
  };
  const calendar = useRef<HTMLInputElement>(null);
  const move = (by: number) => onChange(Math.round(((value ?? Date.now()) + by) / 1000) * 1000);
  return (
    <div className={css.stepper}>
      <ActionIcon variant="default" size={30} aria-label={`${label}: earlier`} onClick={() => move(-range / 2)}>
        <IconChevronLeft size={15} />
      </ActionIcon>
      <TextInput
        size="xs"
        w={178}
        value={text}
        placeholder={`${label}: now`}
        aria-label={`${label} (${zoneName(settings.utc)}), empty is now`}
        error={wrong}
        title={wrong ? "Write it as 2026-01-31 14:05:00" : undefined}
        onChange={(e) => setText(e.currentTarget.value)}
        onBlur={commit}
        onKeyDown={(e) => e.key === "Enter" && commit()}
        rightSection={value !== null && <CloseButton size="sm" aria-label={`${label}: back to now`} onClick={() => onChange(null)} />}
        styles={{ input: { borderRadius: 0 } }}
      />
      <ActionIcon variant="default" size={30} aria-label={`${label}: calendar`} onClick={() => calendar.current?.showPicker()}>
        <IconCalendar size={15} />
      </ActionIcon>
      {/* The browser's own calendar opens where this is. */}
      <input
        ref={calendar}
        type="datetime-local"
        step={1}
        tabIndex={-1}
        aria-hidden
        className={css.picker}
        value={formatTime(value ?? Date.now(), settings.utc).replace(" ", "T")}
        onChange={(e) => {
          const t = parseTime(e.currentTarget.value, settings.utc);
          if (t !== null) onChange(t);
        }}
      />
      <ActionIcon variant="default" size={30} aria-label={`${label}: later`} onClick={() => move(range / 2)}>
        <IconChevronRight size={15} />
      </ActionIcon>
    </div>
  );
}
