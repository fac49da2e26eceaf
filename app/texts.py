"""The words of the pages, from one catalogue: `t("key words")` in a template or a script.

A key is the English text. Sentences of norma itself (flags, promises, reasons) stay English.
"""

from __future__ import annotations

import re

PLACE = re.compile(r"(\S+) (.+), (\d+) (mm deep)")

LANGUAGES = {"en": "English", "de": "Deutsch", "fr": "Français"}

# English: (German, French)
CATALOGUE: dict[str, tuple[str, str]] = {
    # every page
    "Research software, not a medical device; not for diagnosis.": (
        "Forschungssoftware, kein Medizinprodukt; nicht zur Diagnose.",
        "Logiciel de recherche, pas un dispositif médical ; pas pour le diagnostic.",
    ),
    "Main": ("Haupt", "Principal"),
    "Studies": ("Studien", "Études"),
    "Opinions": ("Urteile", "Avis"),
    "Users": ("Benutzer", "Utilisateurs"),
    "Audit log": ("Protokoll", "Journal"),
    "Log in": ("Anmelden", "Se connecter"),
    "Log out": ("Abmelden", "Se déconnecter"),
    "Not possible": ("Nicht möglich", "Impossible"),
    "Back to the studies": ("Zurück zu den Studien", "Retour aux études"),
    "reader": ("Leser", "lecteur"),
    "reviewer": ("Prüfer", "réviseur"),
    "admin": ("Verwalter", "administrateur"),
    # account, users, audit log
    "Account": ("Konto", "Compte"),
    "Name": ("Name", "Nom"),
    "Password": ("Passwort", "Mot de passe"),
    "Old password": ("Altes Passwort", "Ancien mot de passe"),
    "New password": ("Neues Passwort", "Nouveau mot de passe"),
    "Change": ("Ändern", "Modifier"),
    "Language": ("Sprache", "Langue"),
    "Tokens": ("Token", "Jetons"),
    "Copy it now; it is not shown again.": (
        "Jetzt kopieren; es wird nicht noch einmal gezeigt.",
        "Copiez-le maintenant ; il ne sera plus affiché.",
    ),
    "until": ("bis", "jusqu’au"),
    "revoked": ("widerrufen", "révoqué"),
    "Revoke": ("Widerrufen", "Révoquer"),
    "Name of the program": ("Name des Programms", "Nom du programme"),
    "Make a token": ("Token erstellen", "Créer un jeton"),
    "Sessions": ("Sitzungen", "Sessions"),
    "ended": ("beendet", "terminée"),
    "Time, UTC": ("Zeit, UTC", "Heure, UTC"),
    "Who": ("Wer", "Qui"),
    "What": ("Was", "Quoi"),
    "About": ("Worüber", "Objet"),
    "From": ("Von", "Depuis"),
    "Role, password": ("Rolle, Passwort", "Rôle, mot de passe"),
    "Role": ("Rolle", "Rôle"),
    "may log in": ("darf sich anmelden", "peut se connecter"),
    "New user": ("Neuer Benutzer", "Nouvel utilisateur"),
    "Add": ("Hinzufügen", "Ajouter"),
    # list of studies
    "Drop scans here, or choose them: NIfTI, or DICOM in a zip file": (
        "Aufnahmen hierher ziehen oder wählen: NIfTI, oder DICOM in einer Zip-Datei",
        "Déposez des examens ici ou choisissez-les : NIfTI, ou DICOM dans un fichier zip",
    ),
    "as it looks": ("dem Anschein nach", "selon l’apparence"),
    "The file is too large.": ("Die Datei ist zu groß.", "Le fichier est trop grand."),
    "Label (no names of patients)": (
        "Bezeichnung (keine Namen von Patienten)",
        "Libellé (pas de nom de patient)",
    ),
    "sending": ("wird gesendet", "envoi"),
    "reading": ("wird gelesen", "lecture"),
    "Queued.": ("Wartet.", "En attente."),
    "Here. Please confirm its run.": (
        "Da. Bitte das Modell bestätigen.",
        "Reçu. Veuillez confirmer le modèle.",
    ),
    "It is here already.": ("Ist schon da.", "Déjà présent."),
    "Not taken.": ("Nicht angenommen.", "Pas accepté."),
    "The server cannot be reached.": (
        "Der Server ist nicht zu erreichen.",
        "Le serveur est injoignable.",
    ),
    "Run": ("Modell", "Modèle"),
    "confirm later": ("später bestätigen", "confirmer plus tard"),
    "Upload": ("Hochladen", "Envoyer"),
    "Search": ("Suche", "Recherche"),
    "Status": ("Stand", "État"),
    "all": ("alle", "tous"),
    "Modality": ("Modalität", "Modalité"),
    "Flags": ("Hinweise", "Remarques"),
    "with flags": ("mit Hinweisen", "avec remarques"),
    "without flags": ("ohne Hinweise", "sans remarque"),
    "Show": ("Zeigen", "Afficher"),
    "studies": ("Studien", "études"),
    "Study": ("Studie", "Étude"),
    "Subject": ("Person", "Sujet"),
    "Score": ("Wert", "Score"),
    "Percentile": ("Perzentil", "Percentile"),
    "Marked, ml": ("Markiert, ml", "Marqué, ml"),
    "Date": ("Datum", "Date"),
    "Pages": ("Seiten", "Pages"),
    "Previous": ("Zurück", "Précédent"),
    "Next": ("Weiter", "Suivant"),
    "received": ("eingegangen", "reçue"),
    "queued": ("wartet", "en attente"),
    "running": ("läuft", "en cours"),
    "done": ("fertig", "terminée"),
    "refused": ("abgewiesen", "refusée"),
    "failed": ("gescheitert", "échouée"),
    "Studies wait, and no worker takes them. An admin can start one:": (
        "Studien warten, und kein Rechenprozess nimmt sie. Ein Administrator kann einen starten:",
        "Des études attendent sans aucun processus. Un administrateur peut en lancer un :",
    ),
    # one study: bar and progress
    "Neighbouring studies": ("Benachbarte Studien", "Études voisines"),
    "Newer": ("Neuere", "Plus récente"),
    "Older": ("Ältere", "Plus ancienne"),
    "Report": ("Bericht", "Rapport"),
    "Progress": ("Fortschritt", "Progression"),
    "Cancel": ("Abbrechen", "Annuler"),
    "The header looks like": ("Der Kopf der Datei sieht aus wie", "L’en-tête ressemble à"),
    "Please confirm.": ("Bitte bestätigen.", "Veuillez confirmer."),
    "Start": ("Starten", "Lancer"),
    "Run again": ("Noch einmal rechnen", "Relancer"),
    "Remove this study": ("Diese Studie entfernen", "Supprimer cette étude"),
    "The scan and all its results are deleted. Opinions and drawings stay.": (
        "Aufnahme und Ergebnisse werden gelöscht. Beurteilungen und Zeichnungen bleiben.",
        "L’examen et ses résultats sont effacés. Les avis et les dessins restent.",
    ),
    "Remove": ("Entfernen", "Supprimer"),
    # viewer
    "Viewer": ("Betrachter", "Visionneuse"),
    "View": ("Ansicht", "Vue"),
    "Planes": ("Ebenen", "Plans"),
    "All planes": ("Alle Ebenen", "Tous les plans"),
    "Axial": ("Axial", "Axial"),
    "Coronal": ("Koronal", "Coronal"),
    "Sagittal": ("Sagittal", "Sagittal"),
    "3-D": ("3-D", "3-D"),
    "Window": ("Fenster", "Fenêtre"),
    "brain": ("Hirn", "cerveau"),
    "subdural": ("subdural", "sous-dural"),
    "stroke": ("Schlaganfall", "AVC"),
    "bone": ("Knochen", "os"),
    "mediastinum": ("Mediastinum", "médiastin"),
    "automatic": ("automatisch", "automatique"),
    "Tools": ("Werkzeuge", "Outils"),
    "Crosshair": ("Fadenkreuz", "Réticule"),
    "Measure": ("Messen", "Mesurer"),
    "Draw": ("Zeichnen", "Dessiner"),
    "Reconstruction": ("Rekonstruktion", "Reconstruction"),
    "Screenshot": ("Bild sichern", "Capture"),
    "Three planes through the strongest finding, until the viewer stands": (
        "Drei Ebenen durch den stärksten Befund, bis die Ansicht bereit ist",
        "Trois plans passant par l’anomalie la plus forte, en attendant l’affichage",
    ),
    "Scan in three planes": ("Aufnahme in drei Ebenen", "Examen dans trois plans"),
    "loading": ("wird geladen", "chargement"),
    "The viewer could not start.": (
        "Der Betrachter startet nicht.",
        "La visionneuse ne démarre pas.",
    ),
    "scan": ("Aufnahme", "examen"),
    "map": ("Karte", "carte"),
    "Pen": ("Stift", "Stylo"),
    "Brush": ("Pinsel", "Pinceau"),
    "Erase": ("Radieren", "Gomme"),
    "Size": ("Größe", "Taille"),
    "Begin with the marks": ("Mit den Markierungen beginnen", "Partir des marques"),
    "Undo": ("Zurücknehmen", "Annuler le trait"),
    "Clear": ("Leeren", "Effacer tout"),
    "Save the drawing": ("Zeichnung speichern", "Enregistrer le dessin"),
    # findings
    "Findings": ("Befunde", "Résultats"),
    "score": ("Wert", "score"),
    "percentile of healthy scans": (
        "Perzentil gesunder Aufnahmen",
        "percentile des examens sains",
    ),
    "healthy scans": ("gesunde Aufnahmen", "examens sains"),
    "this scan": ("diese Aufnahme", "cet examen"),
    "peak": ("Spitze", "pic"),
    "mean": ("Mittel", "moyenne"),
    "the strongest ones are listed.": (
        "die stärksten sind aufgeführt.",
        "les plus forts sont listés.",
    ),
    "Nothing is marked at this threshold.": (
        "Bei dieser Schwelle ist nichts markiert.",
        "Rien n’est marqué à ce seuil.",
    ),
    "left": ("links", "gauche"),
    "right": ("rechts", "droite"),
    "midline": ("Mittellinie", "ligne médiane"),
    "frontal lobe": ("Frontallappen", "lobe frontal"),
    "parietal lobe": ("Parietallappen", "lobe pariétal"),
    "temporal lobe": ("Temporallappen", "lobe temporal"),
    "occipital lobe": ("Okzipitallappen", "lobe occipital"),
    "insula": ("Insel", "insula"),
    "deep brain": ("tiefe Kerne", "noyaux profonds"),
    "brainstem": ("Hirnstamm", "tronc cérébral"),
    "cerebellum": ("Kleinhirn", "cervelet"),
    "lung": ("Lunge", "poumon"),
    "mm deep": ("mm tief", "mm de profondeur"),
    # map and marks
    "Map and marks": ("Karte und Markierungen", "Carte et marques"),
    "shown": ("sichtbar", "affichées"),
    "Map": ("Karte", "Carte"),
    "Marks": ("Markierung", "Marques"),
    "marks as outlines": ("Markierungen als Umriss", "marques en contour"),
    "Threshold": ("Schwelle", "Seuil"),
    "only pieces with a peak above": ("nur Stücke mit Spitze über", "seulement pic au-dessus de"),
    "pieces": ("Stücke", "morceaux"),
    "As in the report": ("Wie im Bericht", "Comme au rapport"),
    # opinion
    "Your opinion of the marks": ("Ihr Urteil über die Markierungen", "Votre avis sur les marques"),
    "Opinion of component": ("Urteil über Befund", "Avis sur le résultat"),
    "agree": ("stimme zu", "d’accord"),
    "disagree": ("stimme nicht zu", "pas d’accord"),
    "uncertain": ("unsicher", "incertain"),
    "true": ("richtig", "vrai"),
    "false": ("falsch", "faux"),
    "unsure": ("unklar", "douteux"),
    "component": ("Befund", "résultat"),
    "correction": ("Korrektur", "correction"),
    "drawn": ("gezeichnet", "dessinée"),
    "Comment": ("Bemerkung", "Commentaire"),
    "Save": ("Speichern", "Enregistrer"),
    "Saved.": ("Gespeichert.", "Enregistré."),
    ":": (":", "\u00a0:"),
    "of an earlier result": ("zu einem früheren Ergebnis", "sur un résultat antérieur"),
    "Earlier opinions": ("Frühere Urteile", "Avis antérieurs"),
    # keys and mouse
    "Keys and mouse": ("Tasten und Maus", "Touches et souris"),
    "views": ("Ansichten", "vues"),
    "slice up, slice down": ("Schicht hinauf, hinab", "coupe plus haut, plus bas"),
    "next finding, previous finding": ("nächster, voriger Befund", "résultat suivant, précédent"),
    "show and hide the marks": ("Markierungen zeigen, verbergen", "montrer, cacher les marques"),
    "wheel": ("Rad", "molette"),
    "slices of the plane under the pointer": (
        "Schichten der Ebene unter dem Zeiger",
        "coupes du plan sous le pointeur",
    ),
    "right button": ("rechte Taste", "bouton droit"),
    "drag for brightness and contrast": (
        "ziehen für Helligkeit und Kontrast",
        "glisser pour luminosité et contraste",
    ),
    "Shift": ("Umschalt", "Maj"),
    "drag to move, wheel to zoom": (
        "ziehen zum Verschieben, Rad zum Vergrößern",
        "glisser pour déplacer, molette pour zoomer",
    ),
    # report
    "Back to the scan": ("Zurück zur Aufnahme", "Retour à l’examen"),
    "Print": ("Drucken", "Imprimer"),
    "Save as PDF": ("Als PDF speichern", "Enregistrer en PDF"),
    "Save as JSON": ("Als JSON speichern", "Enregistrer en JSON"),
    "This server makes no PDF: print the page and choose PDF there.": (
        "Dieser Server macht kein PDF: die Seite drucken und dort PDF wählen.",
        "Ce serveur ne fait pas de PDF : imprimez la page et choisissez PDF.",
    ),
    "Comparison with healthy scans": (
        "Vergleich mit gesunden Aufnahmen",
        "Comparaison avec des examens sains",
    ),
    "Patient and scan": ("Patient und Aufnahme", "Patient et examen"),
    "Date of birth": ("Geburtsdatum", "Date de naissance"),
    "Voxels": ("Voxel", "Voxels"),
    "Computed": ("Berechnet", "Calculé"),
    "Result": ("Ergebnis", "Résultat"),
    "Percentile of healthy scans": (
        "Perzentil gesunder Aufnahmen",
        "Percentile des examens sains",
    ),
    "Compared with": ("Verglichen mit", "Comparé à"),
    "Marked": ("Markiert", "Marqué"),
    "Quality flags": ("Hinweise zur Qualität", "Remarques de qualité"),
    "none": ("keine", "aucune"),
    "Axial slice": ("Axiale Schicht", "Coupe axiale"),
    "The same slice with map and marks": (
        "Dieselbe Schicht mit Karte und Markierungen",
        "La même coupe avec carte et marques",
    ),
    "Highest value of the map": ("Höchster Wert der Karte", "Valeur la plus haute de la carte"),
    "Axial slices, the patient's right on the left. Orange: departure from healthy scans. Outline: what is marked.": (  # noqa: E501
        "Axiale Schichten, rechts des Patienten liegt links. Orange: Abweichung von gesunden "
        "Aufnahmen. Umriss: was markiert ist.",
        "Coupes axiales, la droite du patient est à gauche. Orange : écart aux examens sains. "
        "Contour : ce qui est marqué.",
    ),
    "Place": ("Ort", "Lieu"),
    "Volume, ml": ("Volumen, ml", "Volume, ml"),
    "Peak": ("Spitze", "Pic"),
    "Mean": ("Mittel", "Moyenne"),
    "Reader": ("Leser", "Lecteur"),
    "How it was computed": ("Wie gerechnet wurde", "Comment c’est calculé"),
    "peaks above": ("Spitzen über", "pics au-dessus de"),
    "False findings": ("Falsche Befunde", "Faux résultats"),
    "Reader's opinion": ("Urteil des Lesers", "Avis du lecteur"),
    "None was given.": ("Keines abgegeben.", "Aucun avis donné."),
    "Drawn corrections": ("Gezeichnete Korrekturen", "Corrections dessinées"),
    "Signature": ("Unterschrift", "Signature"),
}
ORDER = ("de", "fr")


def translate(text: str, language: str = "en") -> str:
    """A text of the pages in a language; what the catalogue lacks stands as it is."""
    known = CATALOGUE.get(text)
    if known is None or language not in ORDER:
        return text
    return known[ORDER.index(language)]


def place(text: str, language: str) -> str:
    """The place of a component in words, such as "left frontal lobe, 12 mm deep"."""
    found = PLACE.fullmatch(text)
    if language == "en" or not found:
        return text
    side, lobe, depth, deep = (translate(part, language) for part in found.groups())
    return f"{lobe}, {side}, {depth} {deep}"


def catalogue(language: str) -> dict[str, str]:
    """All texts in a language, for the scripts of a page."""
    return {text: translate(text, language) for text in CATALOGUE}
