import { CloseButton, TextInput } from "@mantine/core";
import { IconSearch } from "@tabler/icons-react";
import { useEffect, useRef, useState } from "react";

/** A search field that does not make the page work on every key: what is typed is handed on after a moment. The key "/" leads to it. */
export function SearchInput({
  value,
  onChange,
  label,
  delay = 150,
}: {
  value: string;
  onChange: (value: string) => void;
  label: string;
  delay?: number;
}) {
  const [text, setText] = useState(value);
  const sent = useRef(value);
  useEffect(() => {
    // The value changed from outside, by the back button for instance.
    if (value !== sent.current) {
      sent.current = value;
      setText(value);
    }
  }, [value]);
  useEffect(() => {
    if (text === sent.current) return;
    const t = setTimeout(() => {
      sent.current = text;
      onChange(text);
    }, delay);
    return () => clearTimeout(t);
  }, [text, delay, onChange]);
  return (
    <TextInput
      data-search
      type="search"
      value={text}
      onChange={(e) => setText(e.currentTarget.value)}
      aria-label={label}
      placeholder={label}
      leftSection={<IconSearch size={15} aria-hidden />}
      rightSection={text && <CloseButton size="sm" aria-label="Clear the search" onClick={() => setText("")} />}
      size="sm"
      style={{ flex: "1 1 16rem" }}
    />
  );
}
