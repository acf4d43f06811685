import { ActionIcon, Button } from "@mantine/core";
import { useClipboard } from "@mantine/hooks";
import { IconChevronDown, IconChevronUp } from "@tabler/icons-react";
import { useEffect, useMemo, useRef, useState } from "react";
import { usePrometheus } from "../../api/hooks";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import { SearchInput } from "../../components/SearchInput";
import { formatCount } from "../../lib/format";
import { useParam } from "../../lib/urlstate";
import css from "../pages.module.css";
import { occurrences } from "./find";

export default function ConfigPage() {
  const config = usePrometheus<{ yaml: string }>("status/config");
  const clipboard = useClipboard();
  const yaml = config.data?.data.yaml;
  return (
    <Frame
      title="Configuration"
      actions={
        yaml !== undefined && (
          <Button size="xs" variant="default" onClick={() => clipboard.copy(yaml)}>
            {clipboard.copied ? "Copied" : "Copy"}
          </Button>
        )
      }
    >
      <Loaded query={config}>{({ data }) => <Text yaml={data.yaml} />}</Loaded>
    </Frame>
  );
}

const most = 1000;

function Text({ yaml }: { yaml: string }) {
  const [search, setSearch] = useParam("search");
  const places = useMemo(() => occurrences(yaml, search, most), [yaml, search]);
  const [chosen, setChosen] = useState(0);
  const current = useRef<HTMLElement>(null);
  // biome-ignore lint/correctness/useExhaustiveDependencies: another search begins at its first place
  useEffect(() => setChosen(0), [search]);
  // biome-ignore lint/correctness/useExhaustiveDependencies: the one that was chosen comes into view
  useEffect(() => {
    // Newer browsers return a promise, which is no clean-up.
    void current.current?.scrollIntoView({ block: "center", inline: "nearest" });
  }, [chosen, places]);
  const step = (by: number) => setChosen((chosen + by + places.length) % places.length);
  const count = places.length === most ? `${formatCount(most)} or more` : formatCount(places.length);
  return (
    <>
      <div className={`${css.bar} ${css.stays}`}>
        <SearchInput value={search} onChange={setSearch} label="Find in the configuration" />
        {search !== "" && (
          <output className={css.hint}>{places.length > 0 ? `${formatCount(chosen + 1)} of ${count}` : "not there"}</output>
        )}
        <ActionIcon variant="default" size={30} aria-label="The one before" disabled={places.length < 2} onClick={() => step(-1)}>
          <IconChevronUp size={15} />
        </ActionIcon>
        <ActionIcon variant="default" size={30} aria-label="The next one" disabled={places.length < 2} onClick={() => step(1)}>
          <IconChevronDown size={15} />
        </ActionIcon>
      </div>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls sideways, and the keyboard must be able to do so */}
      <pre className={css.pre} tabIndex={0}>
        {places.map((at, i) => (
          <span key={at}>
            {yaml.slice(i === 0 ? 0 : places[i - 1]! + search.length, at)}
            <mark ref={i === chosen ? current : undefined} aria-current={i === chosen || undefined} className={css.found}>
              {yaml.slice(at, at + search.length)}
            </mark>
          </span>
        ))}
        {yaml.slice(places.length > 0 ? places.at(-1)! + search.length : 0)}
      </pre>
    </>
  );
}
