import { usePrometheus } from "../../api/hooks";
import { Frame } from "../../app/Frame";
import { Loaded } from "../../components/Loaded";
import css from "../pages.module.css";
import { readable } from "./runtime";

export default function RuntimePage() {
  const runtime = usePrometheus<Record<string, unknown>>("status/runtimeinfo", { refresh: 15_000 });
  const build = usePrometheus<Record<string, unknown>>("status/buildinfo");
  return (
    <Frame title="Runtime">
      <Loaded query={runtime}>{({ data }) => <Facts title="This process" facts={data} />}</Loaded>
      <Loaded query={build}>{({ data }) => <Facts title="Build" facts={data} />}</Loaded>
    </Frame>
  );
}

function Facts({ title, facts }: { title: string; facts: Record<string, unknown> }) {
  return (
    <>
      <h2 className={css.head}>{title}</h2>
      <table className={css.table}>
        <tbody>
          {Object.entries(facts).map(([k, v]) => (
            <tr key={k}>
              <th scope="row">{readable(k)}</th>
              <td>{String(v)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </>
  );
}
