import { usePrometheus } from "../../api/hooks";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import { Time } from "../../components/Time";
import { formatBytes, formatCount } from "../../lib/format";
import css from "../pages.module.css";

interface Stat {
  name: string;
  value: number;
}

interface TSDB {
  headStats: { numSeries: number; numLabelPairs: number; chunkCount: number; minTime: number; maxTime: number };
  seriesCountByMetricName: Stat[];
  labelValueCountByLabelName: Stat[];
  memoryInBytesByLabelName: Stat[];
  seriesCountByLabelValuePair: Stat[];
}

export default function TSDBPage() {
  const tsdb = usePrometheus<TSDB>("status/tsdb", { params: { limit: 20 }, refresh: 30_000 });
  return (
    <Frame title="TSDB">
      <Loaded query={tsdb}>
        {({ data: { headStats: h, ...top } }) => (
          <>
            <h2 className={css.head}>What is in memory</h2>
            <table className={css.table}>
              <tbody>
                <Fact name="Series">{formatCount(h.numSeries)}</Fact>
                <Fact name="Chunks">{formatCount(h.chunkCount)}</Fact>
                <Fact name="Label pairs">{formatCount(h.numLabelPairs)}</Fact>
                <Fact name="From">{h.numSeries > 0 ? <Time at={h.minTime} /> : "nothing yet"}</Fact>
                <Fact name="To">{h.numSeries > 0 ? <Time at={h.maxTime} /> : "nothing yet"}</Fact>
              </tbody>
            </table>
            <Top title="Metrics with the most series" what="Metric" number="Series" stats={top.seriesCountByMetricName} />
            <Top title="Labels with the most values" what="Label" number="Values" stats={top.labelValueCountByLabelName} />
            <Top title="Label pairs with the most series" what="Label pair" number="Series" stats={top.seriesCountByLabelValuePair} />
            <Top title="Labels whose values need the most memory" what="Label" number="Bytes" stats={top.memoryInBytesByLabelName} bytes />
          </>
        )}
      </Loaded>
    </Frame>
  );
}

function Fact({ name, children }: { name: string; children: React.ReactNode }) {
  return (
    <tr>
      <th scope="row">{name}</th>
      <td className={css.right}>{children}</td>
    </tr>
  );
}

function Top({
  title,
  what,
  number,
  stats,
  bytes,
}: {
  title: string;
  what: string;
  number: string;
  stats: Stat[] | null;
  bytes?: boolean;
}) {
  return (
    <>
      <h2 className={css.head}>{title}</h2>
      <table className={css.table}>
        <thead>
          <tr>
            <th>{what}</th>
            <th className={css.right}>{number}</th>
          </tr>
        </thead>
        <tbody>
          {(stats ?? []).map((s) => (
            <tr key={s.name}>
              <td>
                <code>{s.name}</code>
              </td>
              <td className={css.right}>{bytes ? formatBytes(s.value) : formatCount(s.value)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}
