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
        "Forschungssoftware, kein Medizinprodukt; nicht zur Diagnose bestimmt.",
        "Logiciel de recherche, non un dispositif médical\u00a0; "
        "à ne pas utiliser pour le diagnostic.",
    ),
    "Main": ("Hauptnavigation", "Navigation principale"),
    "Studies": ("Studien", "Études"),
    "Download opinions": ("Beurteilungen herunterladen", "Télécharger les avis"),
    "Users": ("Benutzer", "Utilisateurs"),
    "Audit log": ("Protokoll", "Journal"),
    "Log in": ("Anmelden", "Se connecter"),
    "Log out": ("Abmelden", "Se déconnecter"),
    "Not possible": ("Nicht möglich", "Impossible"),
    "Back to the studies": ("Zurück zu den Studien", "Retour aux études"),
    "reader": ("Befunder", "lecteur"),
    "reviewer": ("Prüfer", "relecteur"),
    "admin": ("Administrator", "administrateur"),
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
        "Copiez-le maintenant\u00a0; il ne sera plus affiché.",
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
    "About": ("Betrifft", "Objet"),
    "From": ("Von", "Depuis"),
    "Role, password": ("Rolle, Passwort", "Rôle, mot de passe"),
    "Role": ("Rolle", "Rôle"),
    "may log in": ("darf sich anmelden", "peut se connecter"),
    "New user": ("Neuer Benutzer", "Nouvel utilisateur"),
    "Add": ("Hinzufügen", "Ajouter"),
    # list of studies
    "Drop scans here, or choose them: NIfTI, or DICOM in a zip file": (
        "Aufnahmen hierher ziehen oder wählen: NIfTI oder DICOM in einer ZIP-Datei",
        "Déposez des examens ici ou choisissez-les\u00a0: NIfTI, ou DICOM dans un fichier zip",
    ),
    "as it looks": ("wie es aussieht", "d’après l’apparence"),
    "A folder; put it into a zip file.": (
        "Ein Ordner; bitte in eine ZIP-Datei packen.",
        "Un dossier\u00a0; mettez-le dans un fichier zip.",
    ),
    "The file is too large.": ("Die Datei ist zu groß.", "Le fichier est trop volumineux."),
    "Label (no names of patients)": (
        "Bezeichnung (keine Patientennamen)",
        "Libellé (pas de nom de patient)",
    ),
    "sending": ("wird gesendet", "envoi"),
    "reading": ("wird gelesen", "lecture"),
    "Queued.": ("Wartet.", "En attente."),
    "Received. Please confirm its run.": (
        "Eingegangen. Bitte das Modell bestätigen.",
        "Reçu. Veuillez confirmer le modèle.",
    ),
    "It is here already.": ("Ist bereits vorhanden.", "Déjà présent."),
    "Not taken.": ("Nicht angenommen.", "Refusé."),
    "The server cannot be reached.": (
        "Der Server ist nicht erreichbar.",
        "Le serveur est injoignable.",
    ),
    "Run": ("Modell", "Modèle"),
    "please choose": ("bitte wählen", "veuillez choisir"),
    "confirm later": ("später bestätigen", "confirmer plus tard"),
    "Upload": ("Hochladen", "Envoyer"),
    "Search": ("Suche", "Recherche"),
    "Status": ("Status", "État"),
    "all": ("alle", "tous"),
    "Modality": ("Modalität", "Modalité"),
    "Flags": ("Hinweise", "Remarques"),
    "with flags": ("mit Hinweisen", "avec remarques"),
    "without flags": ("ohne Hinweise", "sans remarque"),
    "Show": ("Zeigen", "Afficher"),
    "Study": ("Studie", "Étude"),
    "Subject": ("Person", "Sujet"),
    "Score": ("Score", "Score"),
    "Percentile": ("Perzentil", "Percentile"),
    "Marked, ml": ("Markiert, ml", "Marqué, ml"),
    "Date, UTC": ("Datum, UTC", "Date, UTC"),
    "Date": ("Datum", "Date"),
    "Pages": ("Seiten", "Pages"),
    "Previous": ("Zurück", "Précédent"),
    "Next": ("Weiter", "Suivant"),
    "received": ("eingegangen", "reçue"),
    "queued": ("wartet", "en attente"),
    "running": ("läuft", "en cours"),
    "done": ("fertig", "terminée"),
    "refused": ("abgelehnt", "refusée"),
    "failed": ("fehlgeschlagen", "échouée"),
    # what a worker is doing
    "reading the scan": ("Aufnahme wird gelesen", "lecture de l’examen"),
    "finding the brain and its place in the atlas": (
        "Hirn und seine Lage im Atlas werden bestimmt",
        "localisation du cerveau dans l’atlas",
    ),
    "comparing it with healthy scans": (
        "Vergleich mit Gesunden",
        "comparaison avec des sujets sains",
    ),
    "writing map, mask and report": (
        "Karte, Maske und Bericht werden geschrieben",
        "écriture de la carte, du masque et du compte rendu",
    ),
    "Studies wait, and no worker takes them. An admin can start one:": (
        "Studien warten, aber kein Rechenprozess läuft. Ein Administrator kann einen starten:",
        "Des études attendent, mais aucun processus de calcul ne tourne. "
        "Un administrateur peut en lancer un\u00a0:",
    ),
    "next study, previous study": ("nächste, vorige Studie", "étude suivante, précédente"),
    "open": ("öffnen", "ouvrir"),
    "search": ("suchen", "rechercher"),
    # one study: bar and progress
    "Neighbouring studies": ("Benachbarte Studien", "Études voisines"),
    "Newer": ("Neuere", "Plus récente"),
    "Older": ("Ältere", "Plus ancienne"),
    "Report": ("Bericht", "Compte rendu"),
    "Progress": ("Fortschritt", "Progression"),
    "Cancel": ("Abbrechen", "Annuler"),
    "It looks like": ("Es sieht aus wie", "Cela ressemble à"),
    "Please confirm.": ("Bitte bestätigen.", "Veuillez confirmer."),
    "Start": ("Starten", "Lancer"),
    "Run again": ("Neu berechnen", "Recalculer"),
    "Remove this study": ("Diese Studie entfernen", "Supprimer cette étude"),
    "The scan and all its results are deleted. Opinions and drawings stay.": (
        "Aufnahme und Ergebnisse werden gelöscht. Beurteilungen und Zeichnungen bleiben erhalten.",
        "L’examen et ses résultats sont supprimés. Les avis et les dessins sont conservés.",
    ),
    "Remove": ("Entfernen", "Supprimer"),
    # viewer
    "Viewer": ("Bildbetrachter", "Visionneuse"),
    "View": ("Ansicht", "Vue"),
    "Planes": ("Ebenen", "Plans"),
    "All planes": ("Alle Ebenen", "Tous les plans"),
    "Axial": ("Axial", "Axial"),
    "Coronal": ("Koronal", "Coronal"),
    "Sagittal": ("Sagittal", "Sagittal"),
    "3-D": ("3D", "3D"),
    "Window": ("Fenster", "Fenêtre"),
    "brain": ("Hirn", "cerveau"),
    "subdural": ("subdural", "sous-dural"),
    "stroke": ("Schlaganfall", "AVC"),
    "bone": ("Knochen", "os"),
    "mediastinum": ("Mediastinum", "médiastin"),
    "automatic": ("automatisch", "automatique"),
    "own": ("eigenes", "personnalisée"),
    "Tools": ("Werkzeuge", "Outils"),
    "Crosshair": ("Fadenkreuz", "Réticule"),
    "Measure": ("Messen", "Mesurer"),
    "Draw": ("Zeichnen", "Dessiner"),
    "Reconstruction": ("Rekonstruktion", "Reconstruction"),
    "Screenshot": ("Screenshot", "Capture"),
    "Three planes through the strongest finding, until the viewer stands": (
        "Drei Ebenen durch den stärksten Befund, bis die Ansicht bereit ist",
        "Trois plans passant par la détection la plus forte, en attendant l’affichage",
    ),
    "Scan in three planes": ("Aufnahme in drei Ebenen", "Examen dans trois plans"),
    "loading": ("wird geladen", "chargement"),
    "The viewer could not start.": (
        "Der Bildbetrachter konnte nicht starten.",
        "La visionneuse n’a pas pu démarrer.",
    ),
    "scan": ("Aufnahme", "examen"),
    "map": ("Karte", "carte"),
    "Pen": ("Stift", "Stylo"),
    "Brush": ("Pinsel", "Pinceau"),
    "Erase": ("Radieren", "Gomme"),
    "Size": ("Größe", "Taille"),
    "Begin with the marks": ("Mit den Markierungen beginnen", "Partir des marques"),
    "Undo": ("Rückgängig", "Annuler le trait"),
    "Clear": ("Alles löschen", "Effacer tout"),
    "Save the drawing": ("Zeichnung speichern", "Enregistrer le dessin"),
    # findings
    "Findings": ("Befunde", "Détections"),
    "score": ("Score", "score"),
    "percentile of healthy scans": (
        "Perzentil unter Gesunden",
        "percentile parmi les sujets sains",
    ),
    "healthy scans": ("Gesunde", "sujets sains"),
    "this scan": ("diese Aufnahme", "cet examen"),
    "peak": ("Maximum", "pic"),
    "mean": ("Mittelwert", "moyenne"),
    "the strongest ones are listed.": (
        "die stärksten sind aufgeführt.",
        "les plus fortes sont listées.",
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
    "deep brain": ("tiefe Hirnregion", "région cérébrale profonde"),
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
    "only pieces with a peak above": (
        "nur Areale mit Maximum über",
        "seulement les zones de pic supérieur à",
    ),
    "pieces": ("Areale", "zones"),
    "As in the report": ("Wie im Bericht", "Comme dans le compte rendu"),
    # opinion
    "Your opinion of the marks": (
        "Ihre Beurteilung der Markierungen",
        "Votre avis sur les marques",
    ),
    "Opinion of component": ("Beurteilung von Befund", "Avis sur la détection"),
    "agree": ("stimme zu", "d’accord"),
    "disagree": ("stimme nicht zu", "pas d’accord"),
    "uncertain": ("unsicher", "incertain"),
    "true": ("richtig", "vraie"),
    "false": ("falsch", "fausse"),
    "unsure": ("unklar", "douteuse"),
    "component": ("Befund", "détection"),
    "correction": ("Korrektur", "correction"),
    "drawn": ("gezeichnet", "dessinée"),
    "Comment": ("Bemerkung", "Commentaire"),
    "Save": ("Speichern", "Enregistrer"),
    "Saved.": ("Gespeichert.", "Enregistré."),
    ":": (":", "\u00a0:"),
    "of an earlier result": ("zu einem früheren Ergebnis", "sur un résultat antérieur"),
    "Earlier opinions": ("Frühere Beurteilungen", "Avis antérieurs"),
    # keys and mouse
    "Keys and mouse": ("Tasten und Maus", "Touches et souris"),
    "views": ("Ansichten", "vues"),
    "slice up, slice down": ("Schicht höher, tiefer", "coupe plus haut, plus bas"),
    "next finding, previous finding": (
        "nächster, voriger Befund",
        "détection suivante, précédente",
    ),
    "show and hide the marks": ("Markierungen zeigen, verbergen", "montrer, cacher les marques"),
    "zoom about the crosshair": ("zoomen um das Fadenkreuz", "zoom centré sur le réticule"),
    "whole picture, first window": (
        "ganzes Bild, erstes Fenster",
        "image entière, première fenêtre",
    ),
    "wheel": ("Mausrad", "molette"),
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
        "Dieser Server erzeugt kein PDF: Seite drucken und dort „Als PDF speichern“ wählen.",
        "Ce serveur ne produit pas de PDF\u00a0: imprimez la page et choisissez PDF.",
    ),
    "Comparison with healthy scans": (
        "Vergleich mit Gesunden",
        "Comparaison avec des sujets sains",
    ),
    "Patient and scan": ("Patient und Aufnahme", "Patient et examen"),
    "Date of birth": ("Geburtsdatum", "Date de naissance"),
    "Voxels": ("Voxel", "Voxels"),
    "Computed": ("Berechnet am", "Calculé le"),
    "Result": ("Ergebnis", "Résultat"),
    "Percentile of healthy scans": (
        "Perzentil unter Gesunden",
        "Percentile parmi les sujets sains",
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
        "Axiale Schichten, die rechte Seite des Patienten liegt links. Orange: Abweichung von "
        "Gesunden. Umriss: was markiert ist.",
        "Coupes axiales, la droite du patient est à gauche. Orange\u00a0: écart aux sujets sains. "
        "Contour\u00a0: ce qui est marqué.",
    ),
    "Place": ("Ort", "Lieu"),
    "Volume, ml": ("Volumen, ml", "Volume, ml"),
    "Peak": ("Maximum", "Pic"),
    "Mean": ("Mittelwert", "Moyenne"),
    "Reader": ("Befunder", "Lecteur"),
    "How it was computed": ("Berechnung", "Calcul"),
    "peaks above": ("Maxima über", "pics supérieurs à"),
    "False findings": ("Falsche Befunde", "Fausses détections"),
    "Reader's opinion": ("Beurteilung des Befunders", "Avis du lecteur"),
    "None was given.": ("Keine abgegeben.", "Aucun avis donné."),
    "Drawn corrections": ("Gezeichnete Korrekturen", "Corrections dessinées"),
    "Signature": ("Unterschrift", "Signature"),
    # why something is not possible
    "Name and password do not fit.": (
        "Name und Passwort passen nicht zusammen.",
        "Le nom et le mot de passe ne correspondent pas.",
    ),
    "Too many failed logins; wait 15 minutes.": (
        "Zu viele fehlgeschlagene Anmeldungen; bitte 15 Minuten warten.",
        "Trop d’échecs de connexion\u00a0; attendez 15 minutes.",
    ),
    "The old password does not fit.": (
        "Das alte Passwort stimmt nicht.",
        "L’ancien mot de passe n’est pas le bon.",
    ),
    "A password has at least 12 characters.": (
        "Ein Passwort hat mindestens 12 Zeichen.",
        "Un mot de passe a au moins 12 caractères.",
    ),
    "A password has at most 1024 characters.": (
        "Ein Passwort hat höchstens 1024 Zeichen.",
        "Un mot de passe a au plus 1024 caractères.",
    ),
    "A name has 1 to 64 letters, digits or . _ @ -": (
        "Ein Name hat 1 bis 64 Buchstaben, Ziffern oder . _ @ -",
        "Un nom a de 1 à 64 lettres, chiffres ou . _ @ -",
    ),
    "This is the last admin; make another one first.": (
        "Dies ist der letzte Administrator; bitte zuerst einen anderen anlegen.",
        "C’est le dernier administrateur\u00a0; créez-en d’abord un autre.",
    ),
    "This page is too old; load it again and repeat.": (
        "Diese Seite ist veraltet; bitte neu laden und wiederholen.",
        "Cette page est périmée\u00a0; rechargez-la et recommencez.",
    ),
    "This needs the role 'reviewer'.": (
        "Dafür ist die Rolle „Prüfer“ nötig.",
        "Il faut pour cela le rôle «\u00a0relecteur\u00a0».",
    ),
    "This needs the role 'admin'.": (
        "Dafür ist die Rolle „Administrator“ nötig.",
        "Il faut pour cela le rôle «\u00a0administrateur\u00a0».",
    ),
    "There is no such page.": ("Diese Seite gibt es nicht.", "Cette page n’existe pas."),
    "There is no such study.": ("Diese Studie gibt es nicht.", "Cette étude n’existe pas."),
    "This study has no result yet.": (
        "Diese Studie hat noch kein Ergebnis.",
        "Cette étude n’a pas encore de résultat.",
    ),
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
    return f"{lobe}, {side}, {depth}\u00a0{deep}"


def number(text: str, language: str) -> str:
    """A number as a language writes it: with a comma in German and French."""
    return text if language == "en" else text.replace(".", ",")


def sentence(text: str, language: str) -> str:
    """Why something is not possible, as a page says it: with a capital letter."""
    return translate(text[:1].upper() + text[1:], language)


def preferred(accepted: str) -> str:
    """The first language of ours that a browser names in Accept-Language, or English."""
    for part in accepted.split(","):
        code = part.strip()[:2].lower()
        if code in LANGUAGES:
            return code
    return "en"


def catalogue(language: str) -> dict[str, str]:
    """All texts in a language, for the scripts of a page."""
    return {text: translate(text, language) for text in CATALOGUE}
